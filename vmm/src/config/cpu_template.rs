//! What a guest's CPUs show of the host's, bit by bit: custom CPU templates, in the JSON that Firecracker has for them
//! (Firecracker, docs/cpu_templates/cpu-templates.md).

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::num::ParseIntError;

use arch_x86_64::cpuid::Leaf;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A template is some hundred lines.
const MAX_FILE: u64 = 1 << 20;

/// What is to be another than the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuTemplate {
    /// Capabilities that KVM must have, by their numbers; with a `!` those that it need not have, of which posada asks for none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kvm_capabilities: Vec<Capability>,
    /// By CPUID leaf.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// By MSR.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub msr_modifiers: Vec<MsrModifier>,
}

/// A capability of KVM's (Linux, include/uapi/linux/kvm.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Capability {
    /// KVM_CAP_*.
    pub number: u32,
    /// Whether it must be there.
    pub is_needed: bool,
}

/// What is another in a CPUID leaf.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct CpuidModifier {
    leaf: Number,
    subleaf: Number,
    /// KVM_CPUID_FLAG_*, which a leaf of the host's has by itself.
    flags: u32,
    modifiers: Vec<RegisterModifier>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct RegisterModifier {
    register: Register,
    bitmap: Bitmap<32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What is another in an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct MsrModifier {
    addr: Number,
    bitmap: Bitmap<64>,
}

/// Bits that are set or cleared, of `N`; the others stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
struct Bitmap<const N: u32> {
    /// Those that are another.
    mask: u64,
    /// What they are.
    bits: u64,
}

/// A number, with `0x` or `0b` before its digits or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
struct Number(u32);

/// What is no template.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CpuTemplateError {
    /// What should be a number is none.
    #[error("'{text}' is no number of 32 bits: {why}")]
    Number {
        /// What it is.
        text: String,
        /// What is wrong.
        why: ParseIntError,
    },
    /// What should be a bitmap is none.
    #[error("'{0}' is no bitmap of at most {1} bits: write '0b' and one of '0', '1' and 'x' for each")]
    Bitmap(String, u32),
}

/// A leaf that is to be another, and that the host's CPU does not have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "the CPU template changes CPUID leaf {leaf:#x}, subleaf {subleaf:#x}, which this host's CPU does not have"
)]
pub struct NoSuchLeaf {
    leaf: u32,
    subleaf: u32,
}

impl CpuTemplate {
    /// Of a JSON file.
    ///
    /// # Errors
    /// It cannot be read, or is none; a sentence.
    pub fn from_file(path: &str) -> Result<Self, String> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        read.map_err(|error| format!("cannot read it: {error}"))?;
        serde_json::from_str(&text).map_err(|error| format!("it is no CPU template: {error}"))
    }

    /// Whether nothing is another.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Makes what the host's CPU has what the template says.
    ///
    /// # Errors
    /// A leaf is missing.
    pub fn apply(&self, leaves: &mut [Leaf]) -> Result<(), NoSuchLeaf> {
        self.cpuid_modifiers.iter().try_for_each(|modifier| {
            let (Number(leaf), Number(subleaf)) = (modifier.leaf, modifier.subleaf);
            let found = leaves
                .iter_mut()
                .find(|found| found.function == leaf && found.index == subleaf);
            let found = found.ok_or(NoSuchLeaf { leaf, subleaf })?;
            for RegisterModifier { register, bitmap } in &modifier.modifiers {
                let register = match register {
                    Register::Eax => &mut found.eax,
                    Register::Ebx => &mut found.ebx,
                    Register::Ecx => &mut found.ecx,
                    Register::Edx => &mut found.edx,
                };
                // A bitmap of 32 bits leaves the others as they are: zero.
                *register = bitmap.apply(u64::from(*register)) as u32;
            }
            Ok(())
        })
    }
}

impl MsrModifier {
    /// The MSR's number.
    pub fn index(&self) -> u32 {
        self.addr.0
    }

    /// What the MSR is to be, of what it is.
    pub fn apply(&self, value: u64) -> u64 {
        self.bitmap.apply(value)
    }
}

impl<const N: u32> Bitmap<N> {
    fn apply(self, value: u64) -> u64 {
        value & !self.mask | self.bits
    }

    /// The last character is bit 0; bits that are not there stay.
    fn parse(text: &str) -> Option<Self> {
        let digits = text
            .strip_prefix("0b")?
            .chars()
            .filter(|digit| *digit != '_')
            .rev();
        let mut bitmap = Self { mask: 0, bits: 0 };
        let mut bit = 0;
        for digit in digits {
            let (mask, set) = match digit {
                '0' => (1, 0),
                '1' => (1, 1),
                'x' => (0, 0),
                _ => return None,
            };
            if bit == N {
                return None;
            }
            bitmap.mask |= mask << bit;
            bitmap.bits |= set << bit;
            bit += 1;
        }
        (bit > 0).then_some(bitmap)
    }
}

impl<const N: u32> TryFrom<String> for Bitmap<N> {
    type Error = CpuTemplateError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or(CpuTemplateError::Bitmap(text, N))
    }
}

impl<const N: u32> fmt::Display for Bitmap<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |bit: u32| match (self.mask >> bit & 1, self.bits >> bit & 1) {
            (0, _) => "x",
            (_, 0) => "0",
            _ => "1",
        };
        f.write_str("0b")?;
        (0..N).rev().try_for_each(|bit| f.write_str(digit(bit)))
    }
}

impl TryFrom<String> for Number {
    type Error = CpuTemplateError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parsed = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
            (Some(digits), _) => u32::from_str_radix(digits, 16),
            (_, Some(digits)) => u32::from_str_radix(digits, 2),
            _ => text.parse(),
        };
        parsed
            .map(Self)
            .map_err(|why| CpuTemplateError::Number { text, why })
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl TryFrom<String> for Capability {
    type Error = CpuTemplateError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let number = text.strip_prefix('!').unwrap_or(&text).to_owned();
        let is_needed = number.len() == text.len();
        Number::try_from(number).map(|Number(number)| Self { number, is_needed })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.is_needed { "" } else { "!" };
        write!(f, "{mark}{}", self.number)
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> Self {
        capability.to_string()
    }
}

impl From<Number> for String {
    fn from(number: Number) -> Self {
        number.to_string()
    }
}

impl<const N: u32> From<Bitmap<N>> for String {
    fn from(bitmap: Bitmap<N>) -> Self {
        bitmap.to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bits_are_set_cleared_or_left() {
        let bitmap = |text: &str| Bitmap::<32>::try_from(text.to_owned());
        assert_eq!(bitmap("0b1x0_1").unwrap().apply(0b0110), 0b1101);
        assert_eq!(
            bitmap("0b0").unwrap().apply(u64::from(u32::MAX)),
            u64::from(u32::MAX) - 1
        );
        assert_eq!(
            bitmap(&format!("0b{}", "1".repeat(32))).unwrap().apply(0),
            u64::from(u32::MAX)
        );
        for wrong in ["", "0b", "101", "0b12", &format!("0b{}", "x".repeat(33)), "0b__"] {
            assert!(bitmap(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_template_is_applied_to_the_leaf_that_it_names() {
        let template: CpuTemplate = serde_json::from_value(json!({
            "kvm_capabilities": ["!56", "7"],
            "cpuid_modifiers": [{ "leaf": "0x80000002", "subleaf": "0x0", "flags": 0, "modifiers": [
                { "register": "ecx", "bitmap": "0b01" },
            ]}],
            "msr_modifiers": [{ "addr": "0x10a", "bitmap": "0b1x" }],
        }))
        .unwrap();
        let mut leaves = [
            Leaf::default(),
            Leaf {
                function: 0x8000_0002,
                ecx: 0b110,
                ..Leaf::default()
            },
        ];
        template.apply(&mut leaves).unwrap();
        assert_eq!((leaves[0], leaves[1].ecx), (Leaf::default(), 0b101));
        assert_eq!(
            (
                template.msr_modifiers[0].index(),
                template.msr_modifiers[0].apply(0)
            ),
            (0x10a, 2)
        );
        let why = template.apply(&mut leaves[..1]).unwrap_err().to_string();
        assert!(why.contains("0x80000002"), "{why}");

        let again = serde_json::to_value(&template).unwrap();
        assert_eq!(serde_json::from_value::<CpuTemplate>(again).unwrap(), template);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for wrong in [
            json!({ "reg_modifiers": [] }),
            json!({ "kvm_capabilities": ["many"] }),
            json!({ "msr_modifiers": [{ "addr": "0x1_0000_0000", "bitmap": "0b1" }] }),
            json!({ "msr_modifiers": [{ "addr": "0x10" }] }),
            json!({ "cpuid_modifiers": [{ "leaf": "1", "subleaf": "0", "flags": 0, "modifiers": [
                { "register": "rax", "bitmap": "0b1" },
            ]}]}),
        ] {
            assert!(
                serde_json::from_value::<CpuTemplate>(wrong.clone()).is_err(),
                "{wrong}"
            );
        }
    }
}
