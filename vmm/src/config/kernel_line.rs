//! What the kernel is told, and what follows from that.

use arch_x86_64::layout::{self, Interrupts, VirtioSlot};

use super::VmConfig;
use crate::host::HostKind;
use crate::pvm;

/// The console is the first serial port, with flow control by RTS and CTS from the start, so that the guest can hold
/// input back; and a panic ends the guest instead of hanging it.
const DEFAULT_CMDLINE: &str = "console=ttyS0,115200n8r panic=-1";

impl VmConfig {
    /// The kernel's command line on a host of this kind, for a guest with these virtio devices. A host's own options
    /// are part of the default line only: who replaces the line has the last word. A kernel that is told
    /// `acpi=off` is told of the devices as well, and so is every one of a guest that lists them.
    pub fn kernel_cmdline(&self, host: HostKind, virtio: &[VirtioSlot]) -> String {
        let line = match &self.cmdline {
            Some(cmdline) => cmdline.clone(),
            None => self.default_cmdline(host),
        };
        if !self.lists_devices && !self.is_told("acpi=off") {
            return line;
        }
        let devices = virtio.iter().map(|slot| {
            let (base, irq) = (slot.base.0, slot.irq);
            format!(
                " virtio_mmio.device={:#x}@{base:#x}:{irq}",
                layout::VIRTIO_MMIO_SIZE
            )
        });
        line + &devices.collect::<String>()
    }

    fn default_cmdline(&self, host: HostKind) -> String {
        let host_options = match host {
            HostKind::Hardware => "",
            HostKind::Pvm => pvm::GUEST_OPTIONS,
        };
        [
            DEFAULT_CMDLINE,
            host_options,
            self.append.as_deref().unwrap_or_default(),
        ]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
    }

    /// By what the kernel has the virtio devices interrupt it.
    pub fn interrupts(&self) -> Interrupts {
        match self.is_told("noapic") {
            true => Interrupts::Pic,
            false => Interrupts::IoApic,
        }
    }

    /// Whether the user has given the kernel this option.
    fn is_told(&self, option: &str) -> bool {
        let lines = [&self.cmdline, &self.append].into_iter().flatten();
        let mut words = lines.flat_map(|line| line.split_ascii_whitespace());
        words.any(|word| word == option)
    }
}
