//! What a member is told, in order, and never more than it has to hear: it is bounded by the number of partitions.

use std::collections::VecDeque;

use ringfence_core::Result;
use tokio::sync::Notify;

use super::{Partition, PartitionEvent};
use crate::sync::Mutex;

#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<PartitionEvent>,
    /// How the membership ended, once it has.
    end: Option<Result<()>>,
}

impl Inbox {
    pub(super) fn assigned(&self, partition: Partition) {
        self.tell(PartitionEvent::Assigned(partition));
    }

    /// The member has to finish with a partition; one that it never heard of is finished.
    pub(super) fn revoked(&self, number: u32) {
        if !self.unheard(number) {
            self.tell(PartitionEvent::Revoked(number));
        }
    }

    /// The partition is gone.
    pub(super) fn lost(&self, number: u32) {
        if !self.unheard(number) {
            self.tell(PartitionEvent::Lost(number));
        }
    }

    pub(super) fn end(&self, end: Result<()>) {
        self.state.lock().end = Some(end);
        self.news.notify_one();
    }

    /// The next event, `None` after the end. One task at a time.
    pub(super) async fn next(&self) -> Result<Option<PartitionEvent>> {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(event) = state.events.pop_front() {
                    return Ok(Some(event));
                }
                if let Some(end) = &state.end {
                    return end.clone().map(|()| None);
                }
            }
            self.news.notified().await;
        }
    }

    fn tell(&self, event: PartitionEvent) {
        self.state.lock().events.push_back(event);
        self.news.notify_one();
    }

    /// Takes back that a partition was assigned, where the member has not heard of it yet.
    fn unheard(&self, number: u32) -> bool {
        let taken_back = {
            let events = &mut self.state.lock().events;
            let assigned = |event: &PartitionEvent| matches!(event, PartitionEvent::Assigned(partition) if partition.number() == number);
            events.iter().rposition(assigned).and_then(|index| events.remove(index))
        };
        // It is dropped here, outside of the mutex, and that gives it back.
        taken_back.is_some()
    }
}
