//! The guest that an API is about: one that is composed, or one that there is. One thing is done to it at a time.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::Method;
use tracing::warn;
use vmm_sys_util::eventfd::EventFd;

use super::firecracker::{self, AFTER_START, Composition, Logger, Metrics, MetricsFile, Requests, SetLog};
use super::reply::Reply;
use super::streams::Stream;
use super::{Call, Service, open_output, own};
use crate::config::VmConfig;
use crate::console::{self, End};
use crate::control::GuestInfo;
use crate::error::Error;
use crate::events::Events;
use crate::foundation::Foundation;
use crate::lifecycle::Phase;
use crate::metrics::gather;
use crate::mmds::Metadata;
use crate::vm::{RunningVm, Vm, eventfd};

/// How often it is told in a file what the guest does: as in Firecracker.
const METRICS_PERIOD: Duration = Duration::from_secs(60);

/// A guest of this process.
pub struct Instance {
    /// What Firecracker's clients call it.
    id: String,
    /// What it is apart from what is composed: its name.
    base: VmConfig,
    stage: Mutex<Stage>,
    /// Held while something is done; true when nothing is to be begun any more.
    turn: Mutex<bool>,
    /// Written when there is a guest, or is not to be one any more.
    started: EventFd,
    set_log: Option<Box<SetLog>>,
    metrics: Mutex<Option<MetricsFile>>,
    /// For the guest, until there is one.
    metadata: Metadata,
    requests: Requests,
    events: Arc<Events>,
    since: Instant,
}

/// How far it is.
enum Stage {
    Composed(Box<Composition>),
    Built {
        vm: Arc<RunningVm>,
        /// What it was composed of, if it was.
        composition: Option<Box<Composition>>,
    },
}

impl Instance {
    /// A guest that there is.
    ///
    /// # Errors
    /// The host refuses an eventfd.
    pub fn of(vm: Arc<RunningVm>) -> Result<Self, Error> {
        let base = (*vm.config()).clone();
        let events = Arc::new(Events::new(base.name().to_owned()));
        vm.tell_events_to(&events);
        let stage = Stage::Built {
            vm,
            composition: None,
        };
        Self::new(base.name().to_owned(), base, stage, None, events)
    }

    /// A guest that is to be composed, with this name and what else is `base`'s. Messages are set up by `set_log`.
    ///
    /// # Errors
    /// The host refuses an eventfd.
    pub fn to_be(id: String, base: VmConfig, set_log: Box<SetLog>) -> Result<Self, Error> {
        let events = Arc::new(Events::new(base.name().to_owned()));
        Self::new(id, base, Stage::Composed(Box::default()), Some(set_log), events)
    }

    fn new(
        id: String,
        base: VmConfig,
        stage: Stage,
        set_log: Option<Box<SetLog>>,
        events: Arc<Events>,
    ) -> Result<Self, Error> {
        Ok(Self {
            id,
            base,
            stage: Mutex::new(stage),
            turn: Mutex::new(false),
            started: eventfd()?,
            set_log,
            metrics: Mutex::default(),
            metadata: Metadata::default(),
            requests: Requests::default(),
            events,
            since: Instant::now(),
        })
    }

    /// Becomes readable when there is a guest, or is not to be one any more.
    pub fn started(&self) -> &EventFd {
        &self.started
    }

    /// The guest, if there is one.
    pub fn vm(&self) -> Option<Arc<RunningVm>> {
        match &*self.stage() {
            Stage::Composed(_) => None,
            Stage::Built { vm, .. } => Some(vm.clone()),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn phase(&self) -> Phase {
        self.vm().map_or(Phase::Created, |vm| vm.lifecycle().phase())
    }

    /// What is told in posada's own words of one that is to be.
    pub(super) fn info_to_be(&self) -> Result<GuestInfo, Error> {
        let config = self.composition().config(&self.base);
        GuestInfo::to_be(config.unwrap_or_else(|_| self.base.clone()), self.since.elapsed())
    }

    /// What is told of it in Firecracker's words.
    pub(super) fn composition(&self) -> Composition {
        match &*self.stage() {
            Stage::Composed(composition) => (**composition).clone(),
            Stage::Built { vm, composition } => match composition {
                Some(composition) => (**composition).clone().changed_as(&vm.config()),
                None => Composition::of(&vm.config()),
            },
        }
    }

    /// Changes what the guest is to be; `what` begins the sentence that tells why it cannot.
    pub(super) fn compose(
        &self,
        what: &str,
        change: impl FnOnce(&mut Composition) -> Result<(), String>,
    ) -> Result<Reply, Reply> {
        let mut composition = self.composition();
        if self.vm().is_some() {
            return Err(Reply::fault(AFTER_START));
        }
        change(&mut composition).map_err(|why| Reply::fault(format!("{what} error: {why}")))?;
        *self.stage() = Stage::Composed(Box::new(composition));
        Ok(Reply::done())
    }

    /// Has the log be what a user wants.
    pub(super) fn set_log(&self, logger: &Logger) -> Result<(), String> {
        self.set_log.as_ref().map_or(Ok(()), |set| set(logger))
    }

    /// Has what the guest does be told in a file, once a minute and when it ends.
    ///
    /// # Errors
    /// It is told in one already, or cannot be in this one.
    pub fn set_metrics(&self, metrics: &Metrics) -> Result<(), String> {
        let mut file = self.metrics_file();
        if file.is_some() {
            return Err("the metrics go to a file already, which cannot be changed".to_owned());
        }
        *file = Some(MetricsFile::open(metrics, &self.id)?);
        Ok(())
    }

    /// Tells what the guest has done, if it is to be told in a file.
    pub(super) fn tell_metrics(&self) -> io::Result<()> {
        let (Some(file), Some(vm)) = (&mut *self.metrics_file(), self.vm()) else {
            return Ok(());
        };
        file.write(&gather(&vm)?, &self.requests)
    }

    fn metrics_file(&self) -> MutexGuard<'_, Option<MetricsFile>> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at, or changes, what the metadata service tells the guest.
    pub fn with_metadata<T>(&self, look: impl FnOnce(&Metadata) -> T) -> T {
        match self.vm() {
            Some(vm) => look(vm.metadata()),
            None => look(&self.metadata),
        }
    }

    /// Has a guest be told what was put for it before there was one.
    pub(super) fn hand_metadata_to(&self, guest: &Metadata) {
        guest.succeed(&self.metadata);
    }

    /// Has the guest be composed as a file says.
    ///
    /// # Errors
    /// There cannot be such a guest.
    pub fn compose_from(&self, text: &[u8]) -> Result<(), String> {
        let (composition, logger, metrics) = Composition::from_json(text)?;
        metrics.map_or(Ok(()), |metrics| self.set_metrics(&metrics))?;
        logger.map_or(Ok(()), |logger| self.set_log(&logger))?;
        *self.stage() = Stage::Composed(Box::new(composition));
        Ok(())
    }

    /// Builds the guest that has been composed, and lets it run.
    ///
    /// # Errors
    /// It cannot be built, or there is one.
    pub(super) fn start(&self) -> Result<Reply, Reply> {
        let failed = |why: String| Reply::fault(format!("Start microvm error: {why}"));
        let composition = self.composition();
        self.begin(|base, console| {
            let config = composition.config(base).map_err(failed)?;
            let built =
                Foundation::lay(&config).and_then(|foundation| Vm::build(foundation, &config, console));
            let vm = built.map_err(|error| failed(error.to_string()))?;
            self.hand_metadata_to(vm.metadata());
            Ok(vm.start())
        })
    }

    /// The same, for who has no request to answer.
    ///
    /// # Errors
    /// It cannot be built.
    pub fn begin_composed(&self) -> Result<(), String> {
        self.start().map(drop).map_err(|reply| reply.message())
    }

    /// Has a guest be there, which is made of what is not composed and a console.
    pub(super) fn begin(
        &self,
        build: impl FnOnce(&VmConfig, Box<dyn Write + Send>) -> Result<RunningVm, Reply>,
    ) -> Result<Reply, Reply> {
        if self.vm().is_some() {
            return Err(Reply::fault(AFTER_START));
        }
        let composition = self.composition();
        let console = console_of(&composition).map_err(Reply::fault)?;
        let is_composed = !composition.is_untouched();
        let vm = Arc::new(build(&self.base, console)?);
        vm.tell_events_to(&self.events);
        *self.stage() = Stage::Built {
            vm,
            composition: is_composed.then(|| Box::new(composition)),
        };
        self.wake();
        Ok(Reply::done())
    }

    /// There is a guest, or is not to be one: who waits for it need not any more.
    pub(super) fn wake(&self) {
        // Fails only when the counter is full, and then it is already readable.
        let _ = self.started.write(1);
    }

    /// What happens to it.
    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    /// Waits until what is being done is done, and lets nothing be begun any more; who watches and listens is told how it `ended`.
    pub(super) fn finish(&self, end: &End) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.tick();
        self.events.tell(end.into());
        self.events.close();
        if let Some(vm) = self.vm() {
            vm.console().close();
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the guest's console is to print.
fn console_of(composition: &Composition) -> Result<Box<dyn Write + Send>, String> {
    let path = composition
        .serial
        .as_ref()
        .and_then(|serial| serial.serial_out_path.as_ref());
    let Some(path) = path else {
        return match console::output() {
            Ok(output) => Ok(Box::new(output)),
            Err(error) => Err(error.to_string()),
        };
    };
    // What a pipe has no room for is lost, and counted.
    match open_output(path) {
        Ok(file) => Ok(Box::new(file)),
        Err(error) => Err(format!(
            "Serial config error: cannot open '{}': {error}",
            path.display()
        )),
    }
}

impl Service for Instance {
    fn is_immediate(&self, call: &Call) -> bool {
        call.method == Method::GET || own::is_kill(call)
    }

    fn period(&self) -> Option<Duration> {
        self.metrics_file().is_some().then_some(METRICS_PERIOD)
    }

    fn tick(&self) {
        if let Err(error) = self.tell_metrics() {
            warn!("the metrics cannot be written: {error}");
        }
    }

    fn stream(&self, call: &Call) -> Option<Result<Stream, Reply>> {
        own::stream(self, call)
    }

    fn answer(&self, call: &Call) -> Reply {
        let answer = || match own::is_ours(call) {
            true => own::answer(self, call),
            false => {
                let reply = firecracker::answer(self, call).unwrap_or_else(|fault| fault);
                self.requests
                    .count(&call.method, &call.path, !reply.status.is_success());
                reply
            }
        };
        if self.is_immediate(call) {
            return answer();
        }
        let over = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match *over {
            true => Reply::fault("the guest has ended"),
            false => answer(),
        }
    }
}
