//! Instructions run by the host CPU itself, between a FXRSTOR64 and a FXSAVE64.

use std::ffi::c_void;

use ostler_x86::cpu::vector::X87Image;

const PAGE_BYTES: usize = 4096;
/// FXRSTOR64 [RDI].
const LOAD: &[u8] = &[0x48, 0x0f, 0xae, 0x0f];
/// PUSH RDX; POPFQ.
const LOAD_FLAGS: &[u8] = &[0x52, 0x9d];
/// PUSHFQ; POP RAX; FXSAVE64 [RDI]; FNINIT; RET.
const SAVE: &[u8] = &[0x9c, 0x58, 0x48, 0x0f, 0xae, 0x07, 0xdb, 0xe3, 0xc3];

/// One page of code.
pub struct Native {
    page: *mut u8,
}

/// A FXSAVE image.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Image(pub [u8; 512]);

impl Native {
    pub fn new() -> Self {
        // SAFETY: a new private mapping.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED, "a page for code");
        Self { page: page.cast() }
    }

    /// Runs `code`, whose memory operand is at RSI, and gives RFLAGS.
    ///
    /// # Safety
    /// `code` changes nothing but the x87 state, RFLAGS and `operand`, and no unmasked exception is
    /// pending when it waits.
    pub unsafe fn run(&mut self, code: &[u8], image: &mut Image, operand: &mut [u8], flags: u64) -> u64 {
        let bytes = [LOAD, LOAD_FLAGS, code, SAVE].concat();
        // SAFETY: the page is ours and large enough; the caller vouches for `code`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.page, bytes.len());
            let run: extern "sysv64" fn(*mut Image, *mut u8, u64) -> u64 = std::mem::transmute(self.page);
            run(image, operand.as_mut_ptr(), flags)
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nothing uses any more.
        unsafe { libc::munmap(self.page.cast::<c_void>(), PAGE_BYTES) };
    }
}

impl Image {
    pub fn of(x87: &X87Image) -> Self {
        let mut image = Self([0; 512]);
        image.0[0..2].copy_from_slice(&x87.fcw.to_le_bytes());
        image.0[2..4].copy_from_slice(&x87.fsw.to_le_bytes());
        image.0[4] = x87.ftw;
        image.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        for (index, register) in x87.st.iter().enumerate() {
            image.0[32 + 16 * index..][..16].copy_from_slice(register);
        }
        image
    }

    fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.0[offset], self.0[offset + 1]])
    }

    /// Control, status and abridged tag word, and the registers.
    pub fn state(&self) -> State {
        let registers = std::array::from_fn(|index| {
            let mut register = [0; 10];
            register.copy_from_slice(&self.0[32 + 16 * index..][..10]);
            register
        });
        State { control: self.word(0), status: self.word(2), tags: self.0[4], registers }
    }
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub control: u16,
    pub status: u16,
    pub tags: u8,
    pub registers: [[u8; 10]; 8],
}

impl State {
    pub fn of(x87: &X87Image) -> Self {
        Image::of(x87).state()
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "FCW {:04x} FSW {:04x} FTW {:02x}", self.control, self.status, self.tags)?;
        self.registers.iter().try_for_each(|register| writeln!(formatter, "  {register:02x?}"))
    }
}
