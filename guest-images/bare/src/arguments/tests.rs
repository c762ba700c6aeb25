use super::*;

const LINE: &str = "console=ttyS0 virtio_mmio.device=4K@0xd0000000:5 program=blk-check \
                    virtio_mmio.device=512@0xfeb00000:0x6:1 sectors=8 sectors=2K first=0x10";

#[test]
fn devices_come_in_the_order_of_the_line() {
    let devices: Vec<_> = Arguments::new(LINE).devices().map(Result::unwrap).collect();
    let (base, size, irq) = (0xd000_0000, 4096, 5);
    assert_eq!(devices[0], Placement { base, size, irq });
    let (base, size, irq) = (0xfeb0_0000, 512, 6);
    assert_eq!(devices[1..], [Placement { base, size, irq }]);
}

#[test]
fn the_last_word_counts_and_numbers_have_suffixes() {
    let arguments = Arguments::new(LINE);
    assert_eq!(arguments.text("program"), Some("blk-check"));
    assert_eq!(arguments.number("sectors"), Ok(Some(2048)));
    assert_eq!(arguments.number("first"), Ok(Some(16)));
    assert_eq!(arguments.number("queue"), Ok(None));
}

#[test]
fn a_choice_is_one_of_the_named_or_the_first() {
    let choices = [("seq", 1), ("random", 2)];
    let choice = |line| Arguments::new(line).choice("pattern", &choices, "seq or random");
    assert_eq!(choice(""), Ok(1));
    assert_eq!(choice("pattern=random"), Ok(2));
    let refused = choice("pattern=back").unwrap_err().to_string();
    assert_eq!(refused, "pattern=back: give seq or random");
}

#[test]
fn words_that_are_no_numbers_are_refused() {
    for value in [
        "",
        "K",
        "x",
        "0x",
        "-1",
        "1T",
        "1.5",
        "17179869184G",
        "99999999999999999999",
        "ä",
    ] {
        let line = format!("count={value}");
        assert!(Arguments::new(&line).number("count").is_err(), "{value}");
    }
}

#[test]
fn devices_without_all_their_parts_are_refused() {
    for value in [
        "",
        "4K",
        "4K@0xd0000000",
        "4K@:5",
        "@1:5",
        "4K@0x100000000:5",
        "8G@1:5",
        "4K@1:x",
    ] {
        let line = format!("virtio_mmio.device={value}");
        let device = Arguments::new(&line).devices().next().unwrap();
        assert!(device.is_err(), "{value}");
    }
}
