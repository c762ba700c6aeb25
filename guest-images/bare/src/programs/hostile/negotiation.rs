//! Status and features in the wrong order (virtio 1.3 §2.2, §3.1.1).

use super::Case;
use super::live::Live;
use super::victim::{Victim, must};
use crate::device::feature;
use crate::failure::Outcome;
use crate::registers::{offset, status};

const ACKNOWLEDGED: u32 = status::ACKNOWLEDGE | status::DRIVER;
const AGREED: u32 = ACKNOWLEDGED | status::FEATURES_OK;

/// All of them.
pub const CASES: [Case; 14] = [
    Case {
        name: "features-not-offered",
        deed: |victim| refuses(victim, u64::MAX),
    },
    Case {
        name: "features-without-version-1",
        deed: |victim| refuses(victim, feature::INDIRECT),
    },
    Case {
        name: "features-none",
        deed: |victim| refuses(victim, 0),
    },
    Case {
        name: "features-of-halves-that-do-not-exist",
        deed: |victim| {
            victim.begin();
            for half in [2, 3, 64, u32::MAX] {
                victim.registers.write(offset::DEVICE_FEATURES_SELECT, half);
                victim.registers.write(offset::DRIVER_FEATURES_SELECT, half);
                victim.registers.write(offset::DRIVER_FEATURES, u32::MAX);
                let offered = victim.registers.read(offset::DEVICE_FEATURES);
                must(offered == 0, "the device offers features beyond bit 63")?;
            }
            Live::start(victim)?.must_serve()
        },
    },
    Case {
        name: "features-changed-after-they-were-agreed-on",
        deed: |victim| {
            let mut live = Live::prepare(victim, feature::EVENT_IDX)?;
            victim.registers.take_features(0);
            live.let_work();
            victim.registers.take_features(u64::MAX);
            live.must_serve()
        },
    },
    Case {
        name: "status-driver-ok-without-features-ok",
        deed: |victim| {
            victim.begin();
            victim.set_status(ACKNOWLEDGED | status::DRIVER_OK);
            stands(victim)
        },
    },
    Case {
        name: "status-driver-ok-out-of-nothing",
        deed: |victim| {
            victim.set_status(0);
            victim.set_status(status::DRIVER_OK);
            stands(victim)
        },
    },
    Case {
        name: "status-all-bits-at-once",
        deed: |victim| {
            victim.set_status(0);
            victim.set_status(u32::MAX);
            stands(victim)
        },
    },
    Case {
        name: "status-bits-cleared-while-it-runs",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for value in [status::ACKNOWLEDGE, AGREED, status::DRIVER_OK, status::FAILED] {
                victim.set_status(value);
            }
            live.must_serve()
        },
    },
    Case {
        name: "status-features-ok-twice",
        deed: |victim| {
            let mut live = Live::prepare(victim, 0)?;
            victim.set_status(AGREED);
            live.let_work();
            live.let_work();
            live.must_serve()
        },
    },
    Case {
        name: "status-failed-while-it-runs",
        deed: |victim| {
            Live::start(victim)?.must_serve()?;
            victim.set_status(AGREED | status::DRIVER_OK | status::FAILED);
            Ok(())
        },
    },
    Case {
        name: "status-bits-that-are-the-devices",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            victim.set_status(AGREED | status::DRIVER_OK | status::NEEDS_RESET | !0xff | 0x30);
            live.must_serve()
        },
    },
    Case {
        name: "start-without-queues",
        deed: |victim| {
            victim.begin();
            victim
                .registers
                .take_features(feature::VERSION_1 | victim.kind.features);
            victim.set_status(AGREED);
            victim.set_status(AGREED | status::DRIVER_OK);
            // A device that can do without them may also work.
            for queue in 0..victim.queues() {
                victim.registers.write(offset::QUEUE_NOTIFY, queue.into());
            }
            Ok(())
        },
    },
    Case {
        name: "start-and-reset-many-times",
        deed: |victim| {
            for _ in 0..8 {
                Live::start(victim)?;
                victim.set_status(0);
                victim.set_status(0);
                must(victim.status() == 0, "the device is not reset")?;
            }
            Ok(())
        },
    },
];

/// These features the device must not take.
fn refuses(victim: &Victim, features: u64) -> Outcome {
    victim.begin();
    victim.registers.take_features(features);
    victim.set_status(AGREED);
    must(
        victim.status() & status::FEATURES_OK == 0,
        "the device takes these features",
    )?;
    victim.set_status(AGREED | status::DRIVER_OK);
    stands(victim)
}

/// The device must not say that it works.
fn stands(victim: &Victim) -> Outcome {
    must(
        victim.status() & status::DRIVER_OK == 0,
        "the device works without agreed features",
    )
}
