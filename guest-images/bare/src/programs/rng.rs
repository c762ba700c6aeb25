//! `rng`: random bytes from the entropy device.

use alloc::format;
use alloc::vec;
use core::mem::ManuallyDrop;

use bare_guest::arguments::Arguments;
use virtio_drivers::device::rng::VirtIORng;

use crate::device::{self, kind};
use crate::failure::{Failure, Outcome};
use crate::hal::Identity;
use crate::hex::Hex;
use crate::println;

/// Reads twice and checks that the bytes are not constant and differ from read to read.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let bytes = arguments.number("bytes")?.unwrap_or(32) as usize;
    let transport = device::transport(device::find(arguments, kind::ENTROPY)?)?;
    // Never taken down: the machine is switched off next.
    let mut rng = ManuallyDrop::new(VirtIORng::<Identity, _>::new(transport)?);
    let (mut first, mut second) = (vec![0; bytes], vec![0; bytes]);
    for buffer in [&mut first, &mut second] {
        fill(&mut rng, buffer)?;
    }
    // Of fewer bytes it is not unlikely that they are the same by chance.
    if bytes >= 16 && (first == second || first.iter().all(|byte| *byte == first[0])) {
        return Err(Failure::new(format!("these bytes are not random: {first:02x?}")));
    }
    for line in first.chunks(32) {
        println!("random: {}", Hex(line));
    }
    println!("{bytes} bytes twice, and they differ");
    Ok(())
}

/// The device may give less than was asked for (virtio 1.3 §5.4.6), but not nothing.
fn fill(
    rng: &mut VirtIORng<Identity, impl virtio_drivers::transport::Transport>,
    mut buffer: &mut [u8],
) -> Outcome {
    while !buffer.is_empty() {
        let count = rng.request_entropy(buffer)?;
        if count == 0 || count > buffer.len() {
            return Err(Failure::new(format!("{count} bytes for {}", buffer.len())));
        }
        buffer = &mut buffer[count..];
    }
    Ok(())
}
