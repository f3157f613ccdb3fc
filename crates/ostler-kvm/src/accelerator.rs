//! `/dev/kvm` opened, or the reason why not.

use std::ffi::CString;
use std::fmt::{self, Debug};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::Kvm;
use ostler_engine::accel::Result;
use ostler_engine::regs::CpuidEntry;
use ostler_engine::{AccelError, Accelerator, Vm};
use ostler_memory::GuestRam;

use crate::capability::{self, Capabilities};
use crate::cpuid;
use crate::ioctl::host;
use crate::vm::KvmVm;

/// Where the kernel offers KVM.
pub const DEVICE: &str = "/dev/kvm";

const API_VERSION: i32 = 12;

/// Makes VMs of the kernel's KVM.
pub struct KvmAccelerator {
    kvm: Kvm,
    host: Arc<Host>,
}

/// How VMs are to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Writes are logged in a ring of so many entries for each vCPU, in place of a bitmap.
    pub dirty_ring: Option<u32>,
    /// Only local APICs are in the kernel; PIC, IOAPIC and PIT are in this process.
    pub split_irqchip: bool,
}

/// What the VMs of one accelerator share.
#[derive(Debug)]
pub struct Host {
    pub capabilities: Capabilities,
    /// What a vCPU gets when nobody asks for another.
    pub cpuid: Vec<CpuidEntry>,
    /// What it may get at most.
    pub possible_cpuid: Vec<CpuidEntry>,
    pub options: Options,
    /// The MSRs that KVM says are part of a vCPU's state.
    pub msrs: Vec<u32>,
}

impl Debug for KvmAccelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmAccelerator").field("capabilities", &self.host.capabilities).finish_non_exhaustive()
    }
}

impl KvmAccelerator {
    /// Opens the device as [`KvmAccelerator::open`] does; its VMs are made as `options` say.
    pub fn open_with(path: &Path, options: Options) -> Result<Self> {
        let mut opened = Self::open(path)?;
        if options.split_irqchip && !opened.host.capabilities.split_irqchip {
            let shown = path.display();
            return Err(AccelError::Unavailable(format!(
                "{shown} lacks KVM_CAP_SPLIT_IRQCHIP; leave kernel-irqchip=split out"
            )));
        }
        if let Some(host) = Arc::get_mut(&mut opened.host) {
            host.options = options;
            if options.split_irqchip {
                cpuid::add_wide_destinations(&mut host.cpuid);
                cpuid::add_wide_destinations(&mut host.possible_cpuid);
            }
        }
        Ok(opened)
    }

    /// Opens the device at `path`; [`AccelError::Unavailable`] with cause and cure when that is no KVM
    /// that can be used.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| AccelError::Unavailable(format!("{shown}: a path holds no NUL")))?;
        let kvm = Kvm::new_with_path(c_path)
            .map_err(|error| AccelError::Unavailable(format!("{shown}: {}", cannot_open(error.errno()))))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            let said = match version {
                ..0 => "is not KVM".into(),
                _ => format!("speaks version {version} of KVM's API, not {API_VERSION}"),
            };
            return Err(AccelError::Unavailable(format!("{shown} {said}; use --accel soft")));
        }
        let missing = capability::missing(|number| kvm.check_extension_raw(number.into()));
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(AccelError::Unavailable(format!(
                "{shown} lacks {missing}; use a newer kernel or --accel soft"
            )));
        }
        let possible_cpuid = cpuid::possible(&kvm)?;
        let host = Host {
            capabilities: Capabilities::of(&kvm),
            cpuid: cpuid::by_default(&possible_cpuid),
            possible_cpuid,
            options: Options::default(),
            msrs: kvm.get_msr_index_list().map_err(host("KVM_GET_MSR_INDEX_LIST"))?.as_slice().to_vec(),
        };
        Ok(Self { kvm, host: Arc::new(host) })
    }
}

/// What to say of a device that cannot be opened.
fn cannot_open(errno: i32) -> String {
    let error = std::io::Error::from_raw_os_error(errno);
    match errno {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => {
            "there is no KVM here; load kvm_amd or kvm_intel (and enable SVM or VT-x in the firmware), or use \
             --accel soft"
                .into()
        }
        libc::EACCES | libc::EPERM => {
            "permission denied; join the group that owns it (usermod -aG kvm USER), or use --accel soft".into()
        }
        _ => format!("{error}; use --accel soft"),
    }
}

impl Accelerator for KvmAccelerator {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn supported_cpuid(&self) -> Vec<CpuidEntry> {
        self.host.cpuid.clone()
    }

    fn possible_cpuid(&self) -> Vec<CpuidEntry> {
        self.host.possible_cpuid.clone()
    }

    fn create_vm(&self, memory: Arc<GuestRam>) -> Result<Arc<dyn Vm>> {
        let fd = self.kvm.create_vm().map_err(host("KVM_CREATE_VM"))?;
        Ok(Arc::new(KvmVm::new(fd, memory, Arc::clone(&self.host))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &str) -> String {
        KvmAccelerator::open(path.as_ref()).expect_err("not KVM").to_string()
    }

    #[test]
    fn device_that_is_not_there_is_refused_with_a_cure() {
        let said = refusal("/dev/there-is-no-kvm");
        assert!(said.starts_with("/dev/there-is-no-kvm: there is no KVM here; load kvm_amd"), "{said}");
        assert!(!said.contains('\n'), "{said}");
    }

    #[test]
    fn device_that_is_something_else_is_refused() {
        assert_eq!(refusal("/dev/null"), "/dev/null is not KVM; use --accel soft");
    }

    #[test]
    fn device_without_permission_is_refused_with_a_cure() {
        assert!(cannot_open(libc::EACCES).starts_with("permission denied; join the group"));
        assert_eq!(cannot_open(libc::EBUSY), "Device or resource busy (os error 16); use --accel soft");
    }
}
