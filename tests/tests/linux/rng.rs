//! Random numbers from the host, as Linux finds them. (The bare guest's are in bare.rs.)

use posada_tests::Guest;
use posada_tests::booted::POWER_OFF;

#[test]
fn linux_reads_bytes_from_its_hardware_source_and_no_two_alike() {
    const READ: &str = "stty -echo; echo 'bytes='; od -A n -v -t x1 -N 64 /dev/hwrng; \
        read source < /sys/class/misc/hw_random/rng_current; echo source=$source\n";
    let ended = Guest::booted()
        .input(format!("{READ}{POWER_OFF}"))
        .run()
        .expect_status(0);
    let console = ended.console();
    let (_, told) = console.split_once("bytes=\r\n").expect("it tells of bytes");
    let (bytes, source) = told.split_once("source=").expect("it tells of their source");
    let bytes: Vec<_> = bytes.split_whitespace().collect();
    assert_eq!(bytes.len(), 64, "{bytes:?}");
    assert_ne!(bytes[..32], bytes[32..]);
    assert!(source.starts_with("virtio_rng.0"), "another source: {source}");
}
