//! Random numbers from the host, as Linux finds them. (The bare guest's are in bare.rs.)

use posada_tests::Guest;

#[test]
fn linux_reads_bytes_from_its_hardware_source_and_no_two_alike() {
    const READ_TWICE: &str = "stty -echo; \
        for n in 1 2; do echo bytes=$(head -c 32 /dev/hwrng | od -A n -t x1 | tr -d ' \\n'); done; \
        cat /sys/class/misc/hw_random/rng_current; poweroff\n";
    let ended = Guest::tiny()
        .arg("--rng")
        .input(READ_TWICE)
        .run()
        .expect_status(0);
    let console = ended.console();
    let reads: Vec<&str> = console
        .split("bytes=")
        .skip(1)
        .map(|text| {
            text.split(|c: char| !c.is_ascii_hexdigit())
                .next()
                .unwrap_or_default()
        })
        .filter(|digits| !digits.is_empty())
        .collect();
    let [first, second] = reads[..] else {
        panic!("not two reads: {reads:?}")
    };
    assert!(first.len() == 64 && second.len() == 64, "{reads:?}");
    assert_ne!(first, second);
    assert!(console.contains("virtio_rng.0"), "another source than the device");
}
