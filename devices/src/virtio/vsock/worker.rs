//! Serves the device's queues: packets from the guest go to the switchboard, packets from there into the guest's buffers.

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::super::{Chain, Queue, QueueError, QueueState, Trouble, Worker, forget, watch};
use super::notice::Notice;
use super::packet::HEADER_SIZE;
use super::switchboard::Switchboard;
use super::token;

/// Packets of each direction in one turn: 64 KiB each take about 10 µs.
const PACKETS_A_TURN: usize = 64;

/// The queues of a device. That for events is at most one of the last two.
pub struct Queues {
    pub receive: Queue,
    pub transmit: Queue,
    pub event: Option<Queue>,
    pub notice: Option<Notice>,
}

pub struct VsockWorker {
    receive: Queue,
    transmit: Queue,
    /// Has buffers for events of which there are no more: it is only kept.
    event: Option<Queue>,
    /// What the driver has to hear before anything is served.
    notice: Option<Notice>,
    receive_chain: Chain,
    transmit_chain: Chain,
    switchboard: Switchboard,
}

impl VsockWorker {
    pub fn new(queues: Queues, switchboard: Switchboard) -> Self {
        let Queues {
            receive,
            transmit,
            event,
            notice,
        } = queues;
        Self {
            receive_chain: Chain::new(receive.size()),
            transmit_chain: Chain::new(transmit.size()),
            receive,
            transmit,
            event,
            notice,
            switchboard,
        }
    }

    fn handle(&mut self, events: Events, ops: &mut EventOps) -> Result<(), QueueError> {
        match events.data() {
            token @ (token::EVENT | token::PATIENCE) => return self.handle_notice(token, ops),
            token::RECEIVE => self.receive.clear_doorbell(),
            token::TRANSMIT => {
                self.transmit.clear_doorbell();
                self.take_packets(ops)?;
            }
            token::LISTENER => self.switchboard.accept(ops),
            token @ token::HANDSHAKES..token::CONNECTIONS => {
                let number = token - token::HANDSHAKES;
                self.switchboard.handle_handshake(number as usize, ops);
            }
            token => {
                let number = token - token::CONNECTIONS;
                self.switchboard
                    .handle_connection(number as usize, events.event_set(), ops);
            }
        }
        self.give_packets(ops)
    }

    fn handle_notice(&mut self, token: u32, ops: &mut EventOps) -> Result<(), QueueError> {
        if let Some(notice) = &mut self.notice
            && (token == token::PATIENCE || notice.serve()?)
        {
            self.begin(ops);
        }
        Ok(())
    }

    /// The driver has heard what it has to hear: now everything is served.
    fn begin(&mut self, ops: &mut EventOps) {
        if let Some(notice) = self.notice.take() {
            forget_notice(&notice, ops);
            self.event = Some(notice.into_queue());
        }
        watch(ops, self.receive.doorbell(), EventSet::IN, token::RECEIVE);
        watch(ops, self.transmit.doorbell(), EventSet::IN, token::TRANSMIT);
        self.switchboard.watch_all(ops);
    }

    fn take_packets(&mut self, ops: &mut EventOps) -> Result<(), QueueError> {
        self.transmit.disable_doorbell();
        for _ in 0..PACKETS_A_TURN {
            // Answers wait for buffers of the guest's: when it has given some, its packets are taken again.
            if !self.switchboard.takes_packets() {
                self.transmit.signal();
                return Ok(());
            }
            if !self.transmit.pop(&mut self.transmit_chain)? {
                break;
            }
            self.switchboard.take_packet(&self.transmit_chain, ops);
            self.transmit.complete(self.transmit_chain.head(), 0)?;
        }
        self.transmit.signal();
        if self.transmit.enable_doorbell() {
            self.transmit.ring();
        }
        Ok(())
    }

    fn give_packets(&mut self, ops: &mut EventOps) -> Result<(), QueueError> {
        let held_up = !self.switchboard.takes_packets();
        for _ in 0..PACKETS_A_TURN {
            if !self.switchboard.has_packets() {
                break;
            }
            if !self.receive.pop(&mut self.receive_chain)? {
                self.switchboard.set_guest_has_buffers(false);
                break;
            }
            self.switchboard.set_guest_has_buffers(true);
            if self.receive_chain.writable_len() <= HEADER_SIZE {
                let what = "the guest gives a buffer without room for data behind a packet's header";
                self.receive.interrupt().report(Trouble::Guest, &what);
                self.receive.complete(self.receive_chain.head(), 0)?;
                continue;
            }
            match self.switchboard.give_packet(&self.receive_chain, ops) {
                Some(len) => self.receive.complete(self.receive_chain.head(), len)?,
                None => self.receive.undo_pop(),
            }
        }
        self.receive.signal();
        if held_up && self.switchboard.takes_packets() {
            self.transmit.ring();
        }
        self.wait_for_buffers();
        Ok(())
    }

    /// The doorbell of the guest's buffers is only of interest while something waits for one.
    fn wait_for_buffers(&mut self) {
        if !self.switchboard.has_packets() {
            self.receive.disable_doorbell();
        } else if self.receive.enable_doorbell() {
            self.receive.ring();
        }
    }

    fn forget_all(&mut self, ops: &mut EventOps) {
        if let Some(notice) = &self.notice {
            return forget_notice(notice, ops);
        }
        forget(ops, self.receive.doorbell());
        forget(ops, self.transmit.doorbell());
        self.switchboard.close(ops);
    }
}

fn forget_notice(notice: &Notice, ops: &mut EventOps) {
    forget(ops, notice.queue().doorbell());
    forget(ops, notice.timer());
}

impl MutEventSubscriber for VsockWorker {
    fn init(&mut self, ops: &mut EventOps) {
        match &self.notice {
            Some(notice) => {
                watch(ops, notice.queue().doorbell(), EventSet::IN, token::EVENT);
                watch(ops, notice.timer(), EventSet::IN, token::PATIENCE);
                notice.queue().ring();
            }
            None => self.begin(ops),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if let Err(error) = self.handle(events, ops) {
            self.receive.interrupt().needs_reset(&error);
            self.forget_all(ops);
        }
    }
}

impl Worker for VsockWorker {
    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        self.switchboard.forget_watched();
        if let Some(notice) = &mut self.notice {
            notice.put_back();
        }
        let event = self.event.as_ref().or(self.notice.as_ref().map(Notice::queue));
        let queues = [Some(&self.receive), Some(&self.transmit), event];
        queues
            .into_iter()
            .flatten()
            .map(|queue| (queue.index(), queue.state()))
            .collect()
    }
}
