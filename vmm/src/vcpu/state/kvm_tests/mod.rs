//! Guests that are taken out of their machine in the midst of what they do, and go on in another as if nothing had been.

mod guest;
mod moved;
mod round_trip;

use guest::{DATA, DONE, Guest, HANDLER, MMIO, Outcome, PORT};

/// Runs a guest to its end; then once for each of its exits a guest that is moved to another machine at that exit, with the access to
/// the device answered and not yet seen by the guest. Ends when there was no such exit any more, and tells how many there were.
fn moved_at_every_exit(make: impl Fn() -> Guest) -> usize {
    let whole = make().finish();
    for exits in 1.. {
        let [mut guest, mut stayed] = [make(), make()];
        if guest.run(0, exits).is_break() {
            return exits - 1;
        }
        let saved = guest.save();
        assert_same(&guest.restored(&saved).finish(), &whole, "moved", exits);
        assert!(stayed.run(0, exits).is_continue());
        stayed.save();
        assert_same(&stayed.finish(), &whole, "gone on", exits);
    }
    unreachable!("a guest of endless exits")
}

fn assert_same(got: &Outcome, whole: &Outcome, how: &str, exits: usize) {
    assert_eq!(got.regs, whole.regs, "{how} at exit {exits}");
    assert_eq!(got.written, whole.written, "{how} at exit {exits}");
    assert!(got.data == whole.data, "other data, {how} at exit {exits}");
}
