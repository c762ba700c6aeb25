//! The queue walk: rings, descriptor table and indirect tables are whatever the input says.

use std::sync::Arc;

use devices::virtio::Chain;
use devices::virtio::testing::{DriverQueue, Recorder, memory};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 0x4000;
const SIZE: u16 = 16;

/// Puts the input over the queue and what follows it, and takes chains until there are none or one is malformed.
pub fn walk(data: &[u8]) {
    let memory = memory(MEMORY);
    let driver = DriverQueue::new(&memory, 0, SIZE);
    let data = &data[..data.len().min(MEMORY)];
    memory.write_slice(data, GuestAddress(0)).expect("it fits");
    let Ok(mut queue) = driver.device_side(0, Arc::new(Recorder::default()), data.len().is_multiple_of(2))
    else {
        return;
    };
    let mut chain = Chain::new(SIZE);
    // The device's own writes may make chains available too: the used ring can lie over the available one.
    for _ in 0..4 * SIZE {
        let Ok(true) = queue.pop(&mut chain) else { return };
        let count = chain.readable().len() + chain.writable().len();
        assert!((1..=usize::from(SIZE)).contains(&count));
        let mut header = [0; 16];
        chain.read(0, &mut header);
        chain.write(chain.writable_len().saturating_sub(1), &[0]);
        if queue.complete(chain.head(), chain.writable_len()).is_err() {
            return;
        }
        queue.signal();
        queue.enable_doorbell();
    }
}
