//! The command line.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::state::Mode;

pub const USAGE: &str = "\
usage: ostler-differential [option]...
Runs random user-mode instruction sequences on this CPU and on the software CPU and compares.

  --seed N        what the sequences are made from (the time, when not given); printed
  --count N       how many 64-bit sequences; a fifth as many 32-bit and 16-bit ones follow (100000)
  --cases         only the sequences picked by hand, which otherwise come first
  --mode 64|32|16 only sequences of this kind of code segment, --count of them
  --filter NAME   only sequences beginning with this mnemonic or iced Code (with --cases: of this name)
  --replay N      only sequence number N of the run that the other options describe
  --details N     differences shown in full for each instruction (1)
  --side soft|kvm what the host is compared with: the software CPU, or a guest's user mode on /dev/kvm (soft)
  --self-check    compare the host with itself: the harness has to be deterministic
  --list          print the instructions that are compared and stop
";

/// What the host's CPU is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideName {
    Soft,
    Kvm,
}

#[derive(Clone, Debug)]
pub struct Arguments {
    pub seed: u64,
    pub count: u64,
    pub cases: bool,
    pub mode: Option<Mode>,
    pub filter: Option<String>,
    pub replay: Option<u64>,
    pub details: u32,
    pub side: SideName,
    pub self_check: bool,
    pub list: bool,
    pub help: bool,
}

impl Default for Arguments {
    fn default() -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
        Self {
            seed,
            count: 100_000,
            cases: false,
            mode: None,
            filter: None,
            replay: None,
            details: 1,
            side: SideName::Soft,
            self_check: false,
            list: false,
            help: false,
        }
    }
}

impl Arguments {
    /// # Errors
    /// One line that names the argument and what it may be.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value; see --help"));
            match name.as_str() {
                "--seed" => parsed.seed = number(&name, &value()?)?,
                "--count" => parsed.count = number(&name, &value()?)?,
                "--cases" => parsed.cases = true,
                "--mode" => parsed.mode = Some(mode(&value()?)?),
                "--filter" => parsed.filter = Some(value()?),
                "--replay" => parsed.replay = Some(number(&name, &value()?)?),
                "--details" => parsed.details = number(&name, &value()?)?.min(u64::from(u32::MAX)) as u32,
                "--side" => parsed.side = side(&value()?)?,
                "--self-check" => parsed.self_check = true,
                "--list" => parsed.list = true,
                "--help" | "-h" => parsed.help = true,
                _ => return Err(format!("{name}: no such option; see --help")),
            }
        }
        Ok(parsed)
    }

    /// The modes to run random sequences in, in order.
    pub fn modes(&self) -> Vec<Mode> {
        match self.mode {
            _ if self.cases => Vec::new(),
            Some(mode) => vec![mode],
            None => vec![Mode::Long, Mode::Compatibility, Mode::Sixteen],
        }
    }

    pub fn count_of(&self, mode: Mode) -> u64 {
        if self.mode.is_none() && mode != Mode::Long { self.count / 5 } else { self.count }
    }
}

fn number(name: &str, text: &str) -> Result<u64, String> {
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    parsed.map_err(|_| format!("{name} {text}: not a number; give a decimal or 0x... one"))
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "64" => Ok(Mode::Long),
        "32" => Ok(Mode::Compatibility),
        "16" => Ok(Mode::Sixteen),
        _ => Err(format!("--mode {text}: has to be 64, 32 or 16")),
    }
}

fn side(text: &str) -> Result<SideName, String> {
    match text {
        "soft" => Ok(SideName::Soft),
        "kvm" => Ok(SideName::Kvm),
        _ => Err(format!("--side {text}: has to be soft or kvm")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_given_replace_the_defaults() {
        let parsed = parse("--seed 0x10 --count 5 --mode 32 --filter add --replay 3").expect("valid");
        assert_eq!((parsed.seed, parsed.count, parsed.replay), (16, 5, Some(3)));
        assert_eq!(parsed.modes(), [Mode::Compatibility]);
        assert_eq!(parsed.count_of(Mode::Compatibility), 5);
    }

    #[test]
    fn arguments_unknown_or_incomplete_are_refused_in_one_line() {
        for line in ["--sed 1", "--seed", "--seed x", "--mode 8", "--side hvf"] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
