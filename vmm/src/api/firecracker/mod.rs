//! Firecracker's API, version 1.17: its paths, bodies, statuses and rules of what may be done before and after a guest's start.
//!
//! What posada cannot do is refused in one sentence. docs/api.md lists it.

mod changes;
mod composition;
mod devices;
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
use serde_json::{Map, Value, json};

pub use composition::Composition;
pub use logger::{Logger, SetLog, level_of};
pub use metrics::{Metrics, MetricsFile, Requests};

use super::reply::Reply;
use super::{Call, Instance};
use crate::control::{self, Request};
use crate::lifecycle::Phase;
use crate::vm::RunningVm;
use changes::{BalloonStatistics, BalloonUpdate, DriveUpdate, InterfaceUpdate, StatisticsUpdate};
use machine::MachineUpdate;

/// The version of the API that this is.
const VERSION: &str = "1.17.0";

pub(super) const AFTER_START: &str = "The requested operation is not supported after starting the microVM.";
const BEFORE_START: &str = "The requested operation is not supported before starting the microVM.";

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

/// Does what a call asks for.
pub(super) fn answer(instance: &Instance, call: &Call) -> Outcome {
    let path: Vec<_> = call.path.trim_start_matches('/').split_terminator('/').collect();
    match (&call.method, call.body.is_empty()) {
        (&Method::GET, true) => get(instance, &path, call),
        (&Method::GET, false) => Err(Reply::fault("GET request cannot have a body.")),
        (&Method::PUT, true) => Err(Reply::fault("Empty PUT request.")),
        (&Method::PUT, false) => put(instance, &path, call),
        (&Method::PATCH, true) => Err(Reply::fault("Empty PATCH request.")),
        (&Method::PATCH, false) => patch(instance, &path, call),
        (&Method::DELETE, true) => match path[..] {
            ["drives" | "network-interfaces" | "pmem", _] => Err(not_here("does not unplug devices")),
            _ => Err(unknown(call)),
        },
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
        ["version"] => Ok(Reply::json(&json!({ "firecracker_version": VERSION }))),
        ["vm", "config"] => Ok(Reply::json(&instance.composition())),
        ["machine-config"] => Ok(Reply::json(&instance.composition().machine_config)),
        ["balloon"] => match instance.composition().balloon {
            Some(balloon) => Ok(Reply::json(&balloon)),
            None => Err(Reply::fault("Balloon config error: No balloon device found.")),
        },
        ["balloon", "statistics"] => {
            let statistics = BalloonStatistics::of(&*started(instance)?);
            Ok(Reply::json(
                &statistics.map_err(|error| Reply::fault(error.to_string()))?,
            ))
        }
        ["balloon", "hinting", "status"] => Err(when_running(instance, "has no free page hinting")),
        ["hotplug", "memory"] => Err(when_running(instance, "does not plug in memory")),
        ["mmds"] => Ok(instance.with_metadata(mmds::get)),
        _ => Err(unknown(call)),
    }
}

fn put(instance: &Instance, path: &[&str], call: &Call) -> Outcome {
    match path {
        ["actions"] => act(instance, &parse::<Action>(call)?),
        ["boot-source"] => compose(instance, call, "Boot source", Composition::set_boot_source),
        ["machine-config"] => {
            let machine: machine::MachineConfig = parse(call)?;
            let deprecated = machine.is_deprecated();
            instance.compose("Machine config", |composition| composition.set_machine(machine))?;
            Ok(Reply::done().deprecated_if(deprecated))
        }
        ["cpu-config"] => compose(instance, call, "Configure CPU", Composition::set_cpu),
        ["drives", id] => {
            let drive: devices::Drive = parse(call)?;
            check_id(id, &drive.drive_id)?;
            instance.compose("Drive config", |composition| composition.put_drive(drive))
        }
        ["network-interfaces", id] => {
            let interface: devices::NetworkInterface = parse(call)?;
            check_id(id, &interface.iface_id)?;
            instance.compose("Network config", |composition| {
                composition.put_interface(interface)
            })
        }
        ["vsock"] => {
            let vsock: devices::Vsock = parse(call)?;
            let deprecated = vsock.vsock_id.is_some();
            instance.compose("Vsock config", |composition| composition.set_vsock(vsock))?;
            Ok(Reply::done().deprecated_if(deprecated))
        }
        ["balloon"] => compose(instance, call, "Balloon config", Composition::set_balloon),
        ["entropy"] => compose(instance, call, "Entropy config", Composition::set_entropy),
        ["serial"] => compose(instance, call, "Serial config", Composition::set_serial),
        ["logger"] => {
            let logger: Logger = parse(call)?;
            instance.compose("Logger", |_| instance.set_log(&logger))
        }
        ["snapshot", "create"] => create_snapshot(instance, &parse(call)?),
        ["snapshot", "load"] => load_snapshot(instance, &parse(call)?),
        ["metrics"] => {
            let metrics = parse(call)?;
            if instance.vm().is_some() {
                return Err(Reply::fault(AFTER_START));
            }
            let set = instance.set_metrics(&metrics);
            set.map_err(|why| Reply::fault(format!("Metrics error: {why}")))?;
            Ok(Reply::done())
        }
        ["mmds"] => {
            let document: Map<String, Value> = parse(call)?;
            mmds::set(instance.with_metadata(|metadata| metadata.put(document.into())))
        }
        ["mmds", "config"] => {
            let mmds: mmds::Mmds = parse(call)?;
            let deprecated = mmds.is_deprecated();
            instance.compose("MMDS config", |composition| composition.set_mmds(mmds))?;
            Ok(Reply::done().deprecated_if(deprecated))
        }
        ["pmem", _] => Err(not_here("has no persistent memory")),
        ["hotplug", "memory"] => Err(not_here("does not plug in memory")),
        ["drives" | "network-interfaces" | "pmem"] => Err(Reply::fault("The ID cannot be empty.")),
        _ => Err(unknown(call)),
    }
}

fn patch(instance: &Instance, path: &[&str], call: &Call) -> Outcome {
    match path {
        ["machine-config"] => {
            let update: MachineUpdate = parse(call)?;
            if update.is_empty() {
                return Err(Reply::fault("Empty PATCH request."));
            }
            instance.compose("Machine config", |composition| {
                composition.set_machine(composition.machine_config.updated(&update))
            })?;
            Ok(Reply::done().deprecated_if(update.is_deprecated()))
        }
        ["vm"] => {
            let request = match parse::<VmUpdate>(call)?.state {
                VmState::Paused => Request::Pause,
                VmState::Resumed => Request::Resume,
            };
            perform(instance, request)
        }
        ["drives", id] => {
            let update: DriveUpdate = parse(call)?;
            check_id(id, &update.drive_id)?;
            change(instance, "Drive config", |vm| update.apply(vm))
        }
        ["network-interfaces", id] => {
            let update: InterfaceUpdate = parse(call)?;
            check_id(id, &update.iface_id)?;
            change(instance, "Network config", |vm| update.apply(vm))
        }
        ["balloon"] => {
            let update: BalloonUpdate = parse(call)?;
            change(instance, "Balloon update", |vm| update.apply(vm))
        }
        ["balloon", "statistics"] => {
            let update: StatisticsUpdate = parse(call)?;
            change(instance, "Balloon update", |vm| update.apply(vm))
        }
        ["balloon", "hinting", "start" | "stop"] => Err(when_running(instance, "has no free page hinting")),
        ["pmem", _] => Err(when_running(instance, "has no persistent memory")),
        ["hotplug", "memory"] => Err(when_running(instance, "does not plug in memory")),
        ["mmds"] => {
            let patch: Map<String, Value> = parse(call)?;
            mmds::set(instance.with_metadata(|metadata| metadata.patch(patch.into())))
        }
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
    done.map_err(|error| Reply::fault(error.to_string()))?;
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
            told.map_err(|error| Reply::fault(format!("Flush metrics error: {error}")))?;
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
    if !instance.composition().is_untouched() && instance.vm().is_none() {
        return Err(failed(
            "Loading a microVM snapshot not allowed after configuring boot-specific resources.".to_owned(),
        ));
    }
    instance.begin(|base, console| {
        let vm = load.execute(base, console).map_err(failed)?;
        instance.hand_metadata_to(vm.metadata());
        if load.resume_vm {
            vm.resume();
        } else {
            vm.hold().map_err(|error| failed(error.to_string()))?;
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

fn parse<T: DeserializeOwned>(call: &Call) -> Result<T, Reply> {
    call.parse().map_err(|error| {
        Reply::fault(format!(
            "An error occurred when deserializing the json body of a request: {error}."
        ))
    })
}

/// Checks that a part has one name, and a plain one.
fn check_id(in_path: &str, in_body: &str) -> Result<(), Reply> {
    let is_plain = |letter: char| letter == '_' || letter.is_alphanumeric();
    if in_path.is_empty() {
        Err(Reply::fault("The ID cannot be empty."))
    } else if !in_path.chars().all(is_plain) {
        Err(Reply::fault(
            "API Resource IDs can only contain alphanumeric characters and underscores.",
        ))
    } else if in_path != in_body {
        Err(Reply::fault(format!(
            "The id from the path [{in_path}] does not match the id from the body [{in_body}]!"
        )))
    } else {
        Ok(())
    }
}

/// posada lacks something, whatever the guest's state is: the rest of a sentence that begins with its name.
fn not_here(lack: &str) -> Reply {
    Reply::fault(format!(
        "The requested operation is not supported: posada {lack}."
    ))
}

/// The same of what Firecracker does to a guest that has been started.
fn when_running(instance: &Instance, lack: &str) -> Reply {
    match instance.vm() {
        Some(_) => not_here(lack),
        None => Reply::fault(BEFORE_START),
    }
}

fn unknown(call: &Call) -> Reply {
    let (method, path) = (&call.method, call.path.trim_start_matches('/'));
    Reply::fault(format!("Invalid request method and/or path: {method} {path}."))
}

fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::Created => "Not started",
        Phase::Running => "Running",
        Phase::Paused | Phase::Stopped => "Paused",
    }
}
