//! Where the tasks of one process that want one name queue, so that the server sees one waiter.
//!
//! This module is the decisions only: who sits where, who is next, and when nobody is left. It is synchronous and knows
//! no runtime, so that loom can try every interleaving. The task that asks the backend is in `stander`.
//!
//! A room exists for exactly as long as somebody of this process has the *claim* to its name: either a stander, who asks
//! the backend for it, or the holder of the lease. The claim is never dropped, only passed on: whoever gives it up
//! takes the next seat with it, or finds no seat and closes the room, in one step under one mutex. So no seat is
//! forgotten and no two have the claim.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use ringfence_core::Nonce;

use crate::sync::Mutex;

/// The rooms of one process, by what is wanted. `A` is how a seat is answered, `W` how a stander is called back.
#[derive(Debug)]
pub(crate) struct WaitingRooms<K, A, W> {
    /// `None` once they are closed for good.
    open: Mutex<Option<Open<K, A, W>>>,
}

#[derive(Debug)]
struct Open<K, A, W> {
    rooms: HashMap<Arc<K>, Room<K, A, W>>,
    /// Counts across all rooms, so that whoever leaves late never leaves the seat of another in a later room.
    next_number: u64,
}

#[derive(Debug)]
struct Room<K, A, W> {
    key: Arc<K>,
    /// In the order in which they came, so by rising number.
    seats: VecDeque<Seat<A>>,
    /// The attempt that holds the lease; `None` while a stander has the claim.
    holder: Option<Nonce>,
    /// Calls the stander back, while it stands and somebody still waits for it.
    withdrawal: Option<W>,
}

#[derive(Debug)]
struct Seat<A> {
    number: u64,
    answer: A,
    tries: bool,
}

/// Where somebody who comes in finds itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined<K> {
    /// In a seat. The first one in a room has the claim and has to stand for everybody.
    Seated { room: Arc<K>, number: u64, first: bool },
    /// Nowhere: it does not wait, and this process has the name or waits for it already.
    Busy,
    /// Nowhere: the rooms are closed for good.
    Closed,
}

/// What follows for the holder of a lease who gives it up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<A> {
    /// This seat is next; the claim stays with the lease.
    Seat(A),
    /// Nobody waits, or the claim has gone elsewhere: the lease has to be given back.
    Nobody,
}

impl<K: Eq + Hash, A, W> WaitingRooms<K, A, W> {
    pub(crate) fn new() -> Self {
        Self { open: Mutex::new(Some(Open { rooms: HashMap::new(), next_number: 0 })) }
    }

    /// Takes a seat. One that only tries takes it only where it is the first.
    pub(crate) fn join(&self, key: K, answer: A, tries: bool) -> Joined<K> {
        let mut open = self.open.lock();
        let Some(open) = open.as_mut() else {
            return Joined::Closed;
        };
        let number = open.next_number;
        open.next_number += 1;
        let seat = Seat { number, answer, tries };
        if let Some(room) = open.rooms.get_mut(&key) {
            if tries {
                return Joined::Busy;
            }
            room.seats.push_back(seat);
            return Joined::Seated { room: Arc::clone(&room.key), number, first: false };
        }
        let key = Arc::new(key);
        let room =
            Room { key: Arc::clone(&key), seats: VecDeque::from([seat]), holder: None, withdrawal: None };
        open.rooms.insert(Arc::clone(&key), room);
        Joined::Seated { room: key, number, first: true }
    }

    /// Leaves a seat, if it is still there. The last one to leave calls the stander back with what this returns.
    pub(crate) fn leave(&self, key: &K, number: u64) -> Option<W> {
        self.in_room(key, |room| {
            let index = room.seats.binary_search_by_key(&number, |seat| seat.number).ok()?;
            room.seats.remove(index);
            if room.seats.is_empty() { room.withdrawal.take() } else { None }
        })
        .flatten()
    }

    /// The stander is about to ask the backend: whether the seat it asks for only tries. `None`: nobody is left, and
    /// the claim is over.
    pub(crate) fn stand(&self, key: &K, withdrawal: W) -> Option<bool> {
        self.in_room_or_close(key, |room| {
            let tries = room.seats.front()?.tries;
            room.withdrawal = Some(withdrawal);
            Some(tries)
        })
    }

    /// The backend granted the lease: the claim is with its holder.
    pub(crate) fn granted(&self, key: &K, holder: Nonce) {
        // What is dropped here is dropped outside of the mutex.
        let _withdrawal = self.in_room(key, |room| {
            room.holder = Some(holder);
            room.withdrawal.take()
        });
    }

    /// The backend said that the name is busy. The seat to tell so: the first one, if it only tries, or if nobody called
    /// the stander back.
    pub(crate) fn busy(&self, key: &K, tried: bool) -> Option<A> {
        self.in_room(key, |room| {
            let called_back = room.withdrawal.take().is_none();
            let concerned = if tried { room.seats.front()?.tries } else { !called_back };
            if concerned { room.seats.pop_front().map(|seat| seat.answer) } else { None }
        })
        .flatten()
    }

    /// The backend failed: the seat to tell so. The others stay.
    pub(crate) fn failed(&self, key: &K) -> Option<A> {
        self.in_room(key, |room| {
            room.withdrawal = None;
            room.seats.pop_front().map(|seat| seat.answer)
        })
        .flatten()
    }

    /// The holder gives the lease up and asks for the next seat. Where there is none, the claim is over.
    pub(crate) fn next(&self, key: &K, holder: Nonce) -> Next<A> {
        let seat = self.in_room_or_close(key, |room| {
            if room.holder != Some(holder) {
                return Some(None);
            }
            room.seats.pop_front().map(|seat| Some(seat.answer))
        });
        seat.flatten().map_or(Next::Nobody, Next::Seat)
    }

    /// The lease of this holder is over. Whether somebody waits; then the claim is with the caller, who has to stand.
    pub(crate) fn resign(&self, key: &K, holder: Nonce) -> bool {
        let waiting = self.in_room_or_close(key, |room| {
            if room.holder != Some(holder) {
                return Some(false);
            }
            room.holder = None;
            (!room.seats.is_empty()).then_some(true)
        });
        waiting.unwrap_or(false)
    }

    /// The stander cannot go on: closes its room and returns whoever waited there.
    pub(crate) fn evacuate(&self, key: &K) -> Vec<A> {
        let room = self.open.lock().as_mut().and_then(|open| open.rooms.remove(key));
        room.into_iter().flat_map(|room| room.seats).map(|seat| seat.answer).collect()
    }

    /// Closes all rooms for good: everybody who waited, and how to call back whoever stands.
    pub(crate) fn close(&self) -> (Vec<A>, Vec<W>) {
        let open = self.open.lock().take();
        let mut answers = Vec::new();
        let mut withdrawals = Vec::new();
        for room in open.into_iter().flat_map(|open| open.rooms.into_values()) {
            answers.extend(room.seats.into_iter().map(|seat| seat.answer));
            withdrawals.extend(room.withdrawal);
        }
        (answers, withdrawals)
    }

    fn in_room<T>(&self, key: &K, step: impl FnOnce(&mut Room<K, A, W>) -> T) -> Option<T> {
        self.open.lock().as_mut()?.rooms.get_mut(key).map(step)
    }

    /// Like `in_room`, for a step that may end the claim: where it says `None`, the room closes.
    fn in_room_or_close<T>(&self, key: &K, step: impl FnOnce(&mut Room<K, A, W>) -> Option<T>) -> Option<T> {
        let mut open = self.open.lock();
        let rooms = &mut open.as_mut()?.rooms;
        let result = step(rooms.get_mut(key)?);
        if result.is_none() {
            rooms.remove(key);
        }
        result
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    type Rooms = WaitingRooms<&'static str, u32, &'static str>;

    fn nonce(number: u64) -> Nonce {
        Nonce::from_u64(number).unwrap()
    }

    fn number(joined: Joined<&'static str>) -> u64 {
        match joined {
            Joined::Seated { number, .. } => number,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_stands_and_the_others_are_served_in_order() {
        let rooms = Rooms::new();
        assert!(matches!(rooms.join("a", 1, false), Joined::Seated { first: true, .. }));
        assert!(matches!(rooms.join("a", 2, false), Joined::Seated { first: false, .. }));
        assert!(matches!(rooms.join("b", 3, false), Joined::Seated { first: true, .. }));
        assert_eq!(rooms.stand(&"a", "call a back"), Some(false));
        rooms.granted(&"a", nonce(7));
        assert_eq!(rooms.next(&"a", nonce(7)), Next::Seat(1));
        assert_eq!(rooms.next(&"a", nonce(8)), Next::Nobody, "somebody else's lease passes nothing on");
        assert_eq!(rooms.next(&"a", nonce(7)), Next::Seat(2));
        assert_eq!(rooms.next(&"a", nonce(7)), Next::Nobody);
        assert!(
            matches!(rooms.join("a", 4, false), Joined::Seated { first: true, .. }),
            "the room was closed"
        );
    }

    #[test]
    fn one_that_tries_joins_nobody() {
        let rooms = Rooms::new();
        rooms.join("a", 1, true);
        assert_eq!(rooms.join("a", 2, true), Joined::Busy);
        rooms.join("a", 3, false);
        assert_eq!(rooms.stand(&"a", "back"), Some(true));
        assert_eq!(rooms.busy(&"a", true), Some(1), "the one that tries is told");
        assert_eq!(rooms.stand(&"a", "back"), Some(false), "the stander goes on for the one that waits");
        assert_eq!(rooms.busy(&"a", false), Some(3), "a backend that gives up unasked is told on");
    }

    #[test]
    fn a_busy_answer_is_not_for_whoever_came_after_the_one_that_tried() {
        let rooms = Rooms::new();
        let tried = number(rooms.join("a", 1, true));
        rooms.stand(&"a", "back");
        rooms.join("a", 2, false);
        assert_eq!(rooms.leave(&"a", tried), None, "somebody is left");
        assert_eq!(rooms.busy(&"a", true), None);
        assert_eq!(rooms.stand(&"a", "back"), Some(false));
    }

    #[test]
    fn the_last_one_to_leave_calls_the_stander_back() {
        let rooms = Rooms::new();
        let first = number(rooms.join("a", 1, false));
        let second = number(rooms.join("a", 2, false));
        rooms.stand(&"a", "back");
        assert_eq!(rooms.leave(&"a", first), None);
        assert_eq!(rooms.leave(&"a", first), None, "leaving twice changes nothing");
        assert_eq!(rooms.leave(&"a", second), Some("back"));
        rooms.join("a", 3, false);
        assert_eq!(rooms.busy(&"a", false), None, "one that came after the recall is not told of it");
        assert_eq!(rooms.stand(&"a", "back"), Some(false), "but stood for again");
    }

    #[test]
    fn an_error_is_for_the_first_one_only() {
        let rooms = Rooms::new();
        rooms.join("a", 1, false);
        rooms.join("a", 2, false);
        rooms.stand(&"a", "back");
        assert_eq!(rooms.failed(&"a"), Some(1));
        assert_eq!(rooms.stand(&"a", "back"), Some(false));
        assert_eq!(rooms.failed(&"a"), Some(2));
        assert_eq!(rooms.stand(&"a", "back"), None, "nobody is left, the room closes");
    }

    #[test]
    fn a_holder_that_lost_its_lease_stands_in_nobodys_way() {
        let rooms = Rooms::new();
        rooms.join("a", 1, false);
        rooms.join("a", 2, false);
        rooms.stand(&"a", "back");
        rooms.granted(&"a", nonce(7));
        rooms.next(&"a", nonce(7));
        assert!(rooms.resign(&"a", nonce(7)), "somebody waits");
        assert!(!rooms.resign(&"a", nonce(7)), "and is stood for once");
        assert_eq!(rooms.next(&"a", nonce(7)), Next::Nobody, "the old holder passes nothing on");
        assert_eq!(rooms.stand(&"a", "back"), Some(false));
    }

    #[test]
    fn closed_rooms_stay_closed() {
        let rooms = Rooms::new();
        rooms.join("a", 1, false);
        rooms.stand(&"a", "back");
        assert_eq!(rooms.close(), (vec![1], vec!["back"]));
        assert_eq!(rooms.join("a", 2, false), Joined::Closed);
        assert_eq!(rooms.stand(&"a", "back"), None);
        assert_eq!(rooms.close(), (vec![], vec![]));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use loom::thread;

    use super::*;

    const NAME: u8 = 1;

    /// Calls one stander back, one time that it stands.
    type Recall = Arc<AtomicBool>;

    /// One room as the hall drives it, with one thread for everybody who can have the claim at the same time.
    struct World {
        rooms: WaitingRooms<u8, usize, Recall>,
        /// How often each seat was served.
        served: [AtomicUsize; 3],
        /// How many have their turn.
        turns: AtomicUsize,
    }

    impl World {
        fn new() -> Arc<Self> {
            let served = std::array::from_fn(|_| AtomicUsize::new(0));
            Arc::new(Self { rooms: WaitingRooms::new(), served, turns: AtomicUsize::new(0) })
        }

        /// Takes a seat, and the claim if it is the first.
        fn join(&self, seat: usize) -> u64 {
            let Joined::Seated { number, first, .. } = self.rooms.join(NAME, seat, false) else {
                panic!("an open room seats whoever waits");
            };
            if first {
                self.stand(10 + seat as u64);
            }
            number
        }

        fn leave(&self, number: u64) {
            if let Some(recall) = self.rooms.leave(&NAME, number) {
                assert!(!recall.swap(true, Ordering::SeqCst), "a stander is called back once");
            }
        }

        /// Asks the backend until somebody holds the lease or nobody is left.
        fn stand(&self, holder: u64) {
            loop {
                let recall = Recall::default();
                if self.rooms.stand(&NAME, Arc::clone(&recall)).is_none() || self.answered(holder, &recall) {
                    return;
                }
            }
        }

        /// The backend answers: withdrawn, if the recall arrived in time, else granted.
        fn answered(&self, holder: u64, recall: &Recall) -> bool {
            if recall.load(Ordering::SeqCst) {
                assert_eq!(self.rooms.busy(&NAME, false), None, "it was called back");
                return false;
            }
            self.rooms.granted(&NAME, nonce(holder));
            self.pass(holder);
            true
        }

        /// Passes the lease from seat to seat until nobody is left.
        fn pass(&self, holder: u64) {
            while let Next::Seat(seat) = self.rooms.next(&NAME, nonce(holder)) {
                assert_eq!(self.turns.fetch_add(1, Ordering::SeqCst), 0, "two have their turn at once");
                self.served[seat].fetch_add(1, Ordering::SeqCst);
                self.turns.fetch_sub(1, Ordering::SeqCst);
            }
        }

        fn served(&self, seat: usize) -> usize {
            self.served[seat].load(Ordering::SeqCst)
        }

        /// Nobody is left and nobody has the claim: whoever comes next is the first.
        fn assert_closed(&self) {
            assert!(matches!(self.rooms.join(NAME, 0, false), Joined::Seated { first: true, .. }));
        }
    }

    fn nonce(number: u64) -> Nonce {
        Nonce::from_u64(number).unwrap()
    }

    fn spawn(world: &Arc<World>, step: impl FnOnce(&World) + Send + 'static) -> thread::JoinHandle<()> {
        let world = Arc::clone(world);
        thread::spawn(move || step(&world))
    }

    #[test]
    fn loom_pass_and_join_and_leave_forget_nobody() {
        loom::model(|| {
            let world = World::new();
            world.rooms.join(NAME, 0, false);
            world.rooms.stand(&NAME, Recall::default());
            world.rooms.granted(&NAME, nonce(7));
            assert_eq!(world.rooms.next(&NAME, nonce(7)), Next::Seat(0));
            let stays = spawn(&world, |world| {
                world.join(1);
            });
            let leaves = spawn(&world, |world| {
                let number = world.join(2);
                world.leave(number);
            });
            world.pass(7);
            stays.join().unwrap();
            leaves.join().unwrap();
            assert_eq!(world.served(1), 1, "whoever waits is served, once");
            assert!(world.served(2) <= 1);
            world.assert_closed();
        });
    }

    #[test]
    fn loom_a_recalled_stander_stands_again_for_whoever_came_meanwhile() {
        loom::model(|| {
            let world = World::new();
            world.rooms.join(NAME, 0, false);
            let recall = Recall::default();
            world.rooms.stand(&NAME, Arc::clone(&recall));
            let leaves = spawn(&world, |world| world.leave(0));
            let comes = spawn(&world, |world| {
                world.join(1);
            });
            if !world.answered(7, &recall) {
                world.stand(7);
            }
            leaves.join().unwrap();
            comes.join().unwrap();
            assert_eq!(world.served(1), 1, "whoever came is served, once");
            assert!(world.served(0) <= 1);
            world.assert_closed();
        });
    }

    #[test]
    fn loom_the_end_of_a_turn_and_the_loss_of_its_lease_stand_for_the_others_once() {
        loom::model(|| {
            let world = World::new();
            world.rooms.join(NAME, 0, false);
            world.rooms.stand(&NAME, Recall::default());
            world.rooms.granted(&NAME, nonce(7));
            assert_eq!(world.rooms.next(&NAME, nonce(7)), Next::Seat(0));
            let keeper = spawn(&world, |world| {
                if world.rooms.resign(&NAME, nonce(7)) {
                    world.stand(8);
                }
            });
            let comes = spawn(&world, |world| {
                world.join(1);
            });
            // The holder's own release, too late to hand anything on.
            if world.rooms.resign(&NAME, nonce(7)) {
                world.stand(9);
            }
            keeper.join().unwrap();
            comes.join().unwrap();
            assert_eq!(world.served(1), 1, "whoever came is served, once");
            world.assert_closed();
        });
    }
}
