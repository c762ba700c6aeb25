//! Firecracker's API, version 1.17: its paths, bodies, statuses and rules of what may be done before and after a guest's start.
//!
//! What posada cannot do is refused in one sentence. docs/api.md lists it.

mod changes;
mod composition;
mod devices;
mod faults;
mod logger;
mod machine;
mod metrics;
mod mmds;
mod object;
mod rate;
mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use hyper::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

pub use composition::Composition;
pub use logger::{Logger, SetLog, level_of};
pub use metrics::{Metrics, MetricsFile, Requests};

use super::reply::Reply;
use super::{Call, Instance};
use crate::control::{self, Request};
use crate::lifecycle::Phase;
use crate::mmds::{Metadata, MetadataError};
use crate::vm::RunningVm;
use changes::{BalloonStatistics, BalloonUpdate, DriveUpdate, InterfaceUpdate, StatisticsUpdate};
use faults::{
    BEFORE_START, NO_ID, check_drive_id, check_id, check_interface_id, hinting, internal, malformed,
    not_a_path, not_here, parse, unknown, unrecognized, value, when_running,
};
use machine::MachineUpdate;

/// The version of the API that this is.
pub const API_VERSION: &str = "1.17.0";

pub(super) const AFTER_START: &str = "The requested operation is not supported after starting the microVM.";

/// How a request ends; either is an answer.
type Outcome = Result<Reply, Reply>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    action_type: ActionType,
}

#[derive(Deserialize)]
enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmUpdate {
    state: VmState,
}

#[derive(Deserialize)]
enum VmState {
    Paused,
    Resumed,
}

/// Does what a call asks for. What a path has beyond what is looked for is ignored, as in Firecracker.
pub(super) fn answer(instance: &Instance, call: &Call) -> Outcome {
    let path: Vec<_> = call.path.trim_start_matches('/').split_terminator('/').collect();
    match (&call.method, call.body.is_empty()) {
        (&Method::GET, true) => get(instance, &path, call),
        (&Method::GET, false) => Err(Reply::fault("GET request cannot have a body.")),
        (&Method::PUT, true) => Err(Reply::fault("Empty PUT request.")),
        (&Method::PUT, false) => put(instance, &path, call),
        (&Method::PATCH, is_empty) => match path[..] {
            ["balloon", "hinting", ref what @ ..] => Err(hinting(instance, call, what, &["start", "stop"])),
            _ if is_empty => Err(Reply::fault("Empty PATCH request.")),
            _ => patch(instance, &path, call),
        },
        (&Method::DELETE, true) => match path[..] {
            ["drives" | "network-interfaces" | "pmem"] => Err(Reply::fault(NO_ID)),
            ["drives" | "network-interfaces" | "pmem", id, ..] => {
                check_id(id)?;
                Err(when_running(instance, "does not unplug devices"))
            }
            _ => Err(unknown(call)),
        },
        (&Method::DELETE, false) => Err(Reply::fault("Empty Delete request.")),
        _ => Err(unknown(call)),
    }
}

fn get(instance: &Instance, path: &[&str], call: &Call) -> Outcome {
    match path {
        [] => Ok(Reply::json(&json!({
            "id": instance.id(),
            "state": state(instance.phase()),
            "vmm_version": env!("CARGO_PKG_VERSION"),
            "app_name": "posada",
        }))),
        ["version", ..] => Ok(Reply::json(&json!({ "firecracker_version": API_VERSION }))),
        ["vm", "config", ..] => Ok(Reply::json(&instance.composition())),
        ["machine-config", ..] => Ok(Reply::json(&instance.composition().machine_config)),
        ["balloon"] => match (instance.composition().balloon, instance.vm()) {
            (Some(balloon), _) => Ok(Reply::json(&balloon)),
            (None, None) => Err(Reply::fault("Balloon config error: No balloon device found.")),
            (None, Some(_)) => Err(internal("the guest has no balloon")),
        },
        ["balloon", "statistics", ..] => {
            let statistics = BalloonStatistics::of(&*started(instance)?);
            Ok(Reply::json(&statistics.map_err(internal)?))
        }
        ["balloon", "hinting", what @ ..] => Err(hinting(instance, call, what, &["status"])),
        ["balloon", what, ..] => Err(unrecognized(call, what)),
        ["hotplug", "memory", ..] => Err(when_running(instance, "does not plug in memory")),
        ["mmds", ..] => with_metadata(instance, |metadata| Ok(mmds::get(metadata))),
        _ => Err(unknown(call)),
    }
}

fn put(instance: &Instance, path: &[&str], call: &Call) -> Outcome {
    match path {
        ["actions", ..] => act(instance, &parse::<Action>(call)?),
        ["boot-source", ..] => compose(instance, call, "Boot source", Composition::set_boot_source),
        ["machine-config", ..] => {
            let machine: machine::MachineConfig = parse(call)?;
            let deprecated = machine.is_deprecated();
            instance.compose("Machine config", |composition| composition.set_machine(machine))?;
            Ok(Reply::done().deprecated_if(deprecated))
        }
        ["cpu-config", ..] => compose(instance, call, "Configure CPU", Composition::set_cpu),
        ["drives", id, ..] => {
            check_id(id)?;
            let drive: devices::Drive = parse(call)?;
            check_drive_id(id, &drive.drive_id)?;
            instance.compose("Drive config", |composition| composition.put_drive(drive))
        }
        ["network-interfaces", id, ..] => {
            check_id(id)?;
            let interface: devices::NetworkInterface = parse(call)?;
            check_interface_id(id, &interface.iface_id)?;
            instance.compose("Network config", |composition| {
                composition.put_interface(interface)
            })
        }
        ["vsock", ..] => {
            let vsock: devices::Vsock = parse(call)?;
            let deprecated = vsock.vsock_id.is_some();
            instance.compose("Vsock config", |composition| composition.set_vsock(vsock))?;
            Ok(Reply::done().deprecated_if(deprecated))
        }
        ["balloon", ..] => compose(instance, call, "Balloon config", Composition::set_balloon),
        ["entropy", ..] => compose(instance, call, "Entropy config", Composition::set_entropy),
        ["serial", ..] => compose(instance, call, "Serial config", Composition::set_serial),
        ["logger", ..] => {
            let logger: Logger = parse(call)?;
            instance.compose("Logger", |_| instance.set_log(&logger))
        }
        ["snapshot"] => Err(Reply::fault("Missing snapshot operation type.")),
        ["snapshot", "create", ..] => create_snapshot(instance, &parse(call)?),
        ["snapshot", "load", ..] => load_snapshot(instance, &parse(call)?),
        ["snapshot", what, ..] => Err(not_a_path(&call.method, &format!("/snapshot/{what}"))),
        ["metrics", ..] => {
            let metrics = parse(call)?;
            if instance.vm().is_some() {
                return Err(Reply::fault(AFTER_START));
            }
            let set = instance.set_metrics(&metrics);
            set.map_err(|why| Reply::fault(format!("Metrics error: {why}")))?;
            Ok(Reply::done())
        }
        ["mmds"] => {
            let document = value(call)?;
            with_metadata(instance, |metadata| mmds::set(metadata.put(document)))
        }
        ["mmds", "config", ..] => {
            let mmds: mmds::Mmds = parse(call)?;
            let deprecated = mmds.is_deprecated();
            // Three letters M: so it is there.
            instance.compose("MMMDS config", |composition| composition.set_mmds(mmds))?;
            Ok(Reply::done().deprecated_if(deprecated))
        }
        ["mmds", what, ..] => Err(unrecognized(call, what)),
        ["pmem", id, ..] => {
            check_id(id)?;
            Err(not_here("has no persistent memory"))
        }
        ["hotplug", "memory", ..] => Err(not_here("does not plug in memory")),
        ["drives" | "network-interfaces" | "pmem"] => Err(Reply::fault(NO_ID)),
        _ => Err(unknown(call)),
    }
}

fn patch(instance: &Instance, path: &[&str], call: &Call) -> Outcome {
    match path {
        ["machine-config", ..] => {
            let update: MachineUpdate = parse(call)?;
            if update.is_empty() {
                return Err(Reply::fault("Empty PATCH request."));
            }
            instance.compose("Machine config", |composition| {
                composition.set_machine(composition.machine_config.updated(&update))
            })?;
            Ok(Reply::done().deprecated_if(update.is_deprecated()))
        }
        ["vm", ..] => {
            let request = match parse::<VmUpdate>(call)?.state {
                VmState::Paused => Request::Pause,
                VmState::Resumed => Request::Resume,
            };
            perform(instance, request)
        }
        ["drives", id, ..] => {
            check_id(id)?;
            let update: DriveUpdate = parse(call)?;
            check_drive_id(id, &update.drive_id)?;
            change(instance, "Drive config", |vm| update.apply(vm))
        }
        ["network-interfaces", id, ..] => {
            check_id(id)?;
            let update: InterfaceUpdate = parse(call)?;
            check_interface_id(id, &update.iface_id)?;
            change(instance, "Network config", |vm| update.apply(vm))
        }
        ["balloon", "statistics", ..] => {
            let update: StatisticsUpdate = parse(call)?;
            change(instance, "Balloon update", |vm| update.apply(vm))
        }
        ["balloon", ..] => {
            let update: BalloonUpdate = parse(call)?;
            change(instance, "Balloon update", |vm| update.apply(vm))
        }
        ["pmem", id, ..] => {
            check_id(id)?;
            Err(when_running(instance, "has no persistent memory"))
        }
        ["hotplug", "memory", ..] => Err(when_running(instance, "does not plug in memory")),
        ["mmds", ..] => {
            let patch = value(call)?;
            with_metadata(instance, |metadata| mmds::set(metadata.patch(patch)))
        }
        ["drives" | "network-interfaces" | "pmem"] => Err(Reply::fault(NO_ID)),
        _ => Err(unknown(call)),
    }
}

/// The guest, which has been started.
fn started(instance: &Instance) -> Result<Arc<RunningVm>, Reply> {
    instance.vm().ok_or_else(|| Reply::fault(BEFORE_START))
}

/// Has a guest that has been started do what it is asked for, and has nothing to tell of.
fn perform(instance: &Instance, request: Request) -> Outcome {
    let done = control::perform(&*started(instance)?, request);
    done.map_err(internal)?;
    Ok(Reply::done())
}

/// Changes a guest that has been started; `what` begins the sentence that tells why it cannot be.
fn change(instance: &Instance, what: &str, apply: impl FnOnce(&RunningVm) -> Result<(), String>) -> Outcome {
    let done = apply(&*started(instance)?);
    done.map_err(|why| Reply::fault(format!("{what} error: {why}")))?;
    Ok(Reply::done())
}

fn act(instance: &Instance, action: &Action) -> Outcome {
    match action.action_type {
        ActionType::InstanceStart => instance.start(),
        ActionType::FlushMetrics => {
            started(instance)?;
            let told = instance.tell_metrics();
            told.map_err(|error| internal(format_args!("Metrics error: {error}")))?;
            Ok(Reply::done())
        }
        ActionType::SendCtrlAltDel => perform(instance, Request::PowerButton),
    }
}

fn create_snapshot(instance: &Instance, create: &snapshot::Create) -> Outcome {
    let vm = started(instance)?;
    let failed = |why: &str| Reply::fault(format!("Create snapshot error: {why}"));
    if vm.lifecycle().phase() != Phase::Paused {
        return Err(failed("the guest runs: pause it first"));
    }
    create.execute(&vm).map_err(|why| failed(&why))?;
    Ok(Reply::done())
}

fn load_snapshot(instance: &Instance, load: &snapshot::Load) -> Outcome {
    let failed = |why: String| Reply::fault(format!("Load snapshot error: {why}"));
    load.check().map_err(malformed)?;
    if !instance.composition().is_untouched() && instance.vm().is_none() {
        return Err(failed(
            "Loading a microVM snapshot not allowed after configuring boot-specific resources.".to_owned(),
        ));
    }
    instance.begin(|base, console| {
        let vm = load.execute(base, console).map_err(failed)?;
        if !load.resume_vm {
            vm.hold().map_err(|error| failed(error.to_string()))?;
        }
        // From here on nothing fails: what was put is for the next one otherwise.
        instance.hand_metadata_to(vm.metadata());
        if load.resume_vm {
            vm.resume();
        }
        Ok(vm)
    })?;
    Ok(Reply::done().deprecated_if(load.is_deprecated()))
}

/// The body, which is all that there is to say of a part of the guest.
fn compose<T: DeserializeOwned>(
    instance: &Instance,
    call: &Call,
    what: &str,
    set: impl FnOnce(&mut Composition, T) -> Result<(), String>,
) -> Outcome {
    let part = parse(call)?;
    instance.compose(what, |composition| set(composition, part))
}

/// Looks at what the guest is told, or changes it: one that has been started without the service is told nothing.
fn with_metadata(instance: &Instance, look: impl FnOnce(&Metadata) -> Outcome) -> Outcome {
    match instance.vm() {
        Some(vm) if vm.config().mmds.is_none() => mmds::set(Err(MetadataError::None)),
        _ => instance.with_metadata(look),
    }
}

fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::Created => "Not started",
        Phase::Running => "Running",
        Phase::Paused | Phase::Stopped => "Paused",
    }
}
