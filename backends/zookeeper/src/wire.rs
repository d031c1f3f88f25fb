//! What is said to a ZooKeeper server and what it says: the dozen messages that locks need, in the order of their bytes.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest message that is taken from a server: what a server takes from us, unless its `jute.maxbuffer` says otherwise,
/// several times over, because the names of many children come in one.
const MESSAGE_MAX: usize = 16 * 1024 * 1024;

/// Under which number an answer comes that answers no call.
pub(crate) const EVENT: i32 = -1;
pub(crate) const PING: i32 = -2;
pub(crate) const LOGIN: i32 = -4;

const PASSWORD_BYTES: usize = 16;

/// What a server says instead of doing what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) i32);

impl Code {
    pub(crate) const BAD_VERSION: Self = Self(-103);
    pub(crate) const NO_AUTH: Self = Self(-102);
    pub(crate) const NO_NODE: Self = Self(-101);
    pub(crate) const NO_CHILDREN_FOR_EPHEMERALS: Self = Self(-108);
    pub(crate) const NODE_EXISTS: Self = Self(-110);
    pub(crate) const SESSION_EXPIRED: Self = Self(-112);
    pub(crate) const INVALID_ACL: Self = Self(-114);
    pub(crate) const AUTH_FAILED: Self = Self(-115);
    pub(crate) const SESSION_MOVED: Self = Self(-118);
    /// Of a server that is told to serve only those who have logged in (`enforce.auth.enabled`), or who did by SASL.
    pub(crate) const LOGIN_NEEDED: Self = Self(-124);
    pub(crate) const QUOTA_EXCEEDED: Self = Self(-125);
    /// Of an operation in a `multi` whose neighbour failed.
    const NEIGHBOUR_FAILED: Self = Self(-2);
}

/// An answer that is no answer of ZooKeeper's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Odd;

/// Who may do what with a node that we make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody everything, as where nobody has a name.
    Anyone,
    /// Those everything who are logged in as we are.
    Creator,
}

/// What kind of node is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Persistent,
    /// It goes when it has had children and has none.
    Container,
    /// It ends with the session, and the server adds a number to its name.
    InLine,
}

/// A request, without its number.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Request {
    operation: i32,
    body: BytesMut,
}

impl Request {
    fn new(operation: i32) -> Self {
        Self { operation, body: BytesMut::with_capacity(128) }
    }

    fn path(mut self, path: &str) -> Self {
        self.body.put_i32(length(path.len()));
        self.body.put_slice(path.as_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.body.put_i32(length(bytes.len()));
        self.body.put_slice(bytes);
        self
    }

    fn int(mut self, int: i32) -> Self {
        self.body.put_i32(int);
        self
    }

    fn flag(mut self, flag: bool) -> Self {
        self.body.put_u8(flag.into());
        self
    }

    /// All rights to a node.
    const EVERYTHING: i32 = 31;

    /// Makes a node. Answered with [`Created`].
    pub(crate) fn create(path: &str, data: &[u8], access: Access, kind: Kind) -> Self {
        let (operation, flags) = match kind {
            Kind::Persistent => (15, 0),
            Kind::Container => (19, 4),
            Kind::InLine => (15, 3),
        };
        let (scheme, id) = match access {
            Access::Anyone => ("world", "anyone"),
            Access::Creator => ("auth", ""),
        };
        Self::new(operation)
            .path(path)
            .bytes(data)
            .int(1)
            .int(Self::EVERYTHING)
            .path(scheme)
            .path(id)
            .int(flags)
    }

    /// Removes a node, whatever it holds. Answered with nothing.
    pub(crate) fn delete(path: &str) -> Self {
        Self::new(2).path(path).int(ANY_VERSION)
    }

    /// Removes a node, where it has this version. Answered with nothing.
    pub(crate) fn delete_at(path: &str, version: i32) -> Self {
        Self::new(2).path(path).int(version)
    }

    /// What a node holds; with a watch, word of its next change or its end too. Answered with [`Data`].
    pub(crate) fn data(path: &str, watch: bool) -> Self {
        Self::new(4).path(path).flag(watch)
    }

    /// Whether a node is there; with a watch, word of its next change or its end too. Answered with a [`Stat`].
    pub(crate) fn exists(path: &str, watch: bool) -> Self {
        Self::new(3).path(path).flag(watch)
    }

    /// Replaces what a node holds, where it has this version. Answered with a [`Stat`].
    pub(crate) fn set_data(path: &str, data: &[u8], version: i32) -> Self {
        Self::new(5).path(path).bytes(data).int(version)
    }

    /// Who may do what with a node. Answered with [`acl`].
    pub(crate) fn acl(path: &str) -> Self {
        Self::new(6).path(path)
    }

    /// The names of a node's children; with a watch, word of the next one that comes or goes too. Answered with [`children`].
    pub(crate) fn children(path: &str, watch: bool) -> Self {
        Self::new(12).path(path).flag(watch)
    }

    /// Has the leader answer, and the server that we speak to catch up with it. Answered with nothing of interest.
    pub(crate) fn sync(path: &str) -> Self {
        Self::new(9).path(path)
    }

    /// Only in [`Self::all`]: whether a node is there.
    pub(crate) fn check(path: &str) -> Self {
        Self::new(13).path(path).int(ANY_VERSION)
    }

    /// All of these, or none of them. Answered with [`all`].
    pub(crate) fn all<'a>(requests: impl IntoIterator<Item = &'a Self>) -> Self {
        Self::several(14, requests)
    }

    /// The names of the children of several nodes. Answered with [`children_of_all`].
    pub(crate) fn children_of_all(paths: &[&str]) -> Self {
        let each: Vec<Self> = paths.iter().map(|path| Self::new(8).path(path).flag(false)).collect();
        Self::several(22, &each)
    }

    fn several<'a>(operation: i32, requests: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut several = Self::new(operation);
        for request in requests {
            several = several.int(request.operation).flag(false).int(-1);
            several.body.put_slice(&request.body);
        }
        several.int(-1).flag(true).int(-1)
    }

    /// Changes nothing, and has a majority of the servers agree to that. A leader that has lost the others answers everything else,
    /// until it knows.
    pub(crate) fn agree() -> Self {
        Self::all(&[Self::check("/")])
    }

    pub(crate) fn ping() -> Self {
        Self::new(11)
    }

    /// Ends the session.
    pub(crate) fn close() -> Self {
        Self::new(-11)
    }

    /// Says who we are: a user and a password.
    pub(crate) fn login(login: &str) -> Self {
        Self::new(100).int(0).path("digest").bytes(login.as_bytes())
    }

    /// Writes it with a number, under which its answer comes.
    pub(crate) fn write(&self, number: i32, out: &mut BytesMut) {
        out.put_i32(length(8 + self.body.len()));
        out.put_i32(number);
        out.put_i32(self.operation);
        out.put_slice(&self.body);
    }
}

/// Without its body, in which a password may be.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("operation", &self.operation).finish_non_exhaustive()
    }
}

/// Of a node, where it does not matter how often it was changed.
pub(crate) const ANY_VERSION: i32 = -1;

fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).expect("names and records are short")
}

/// What begins a connection: which session, and what was seen in it last.
#[derive(Clone)]
pub(crate) struct Greeting {
    pub(crate) seen: i64,
    pub(crate) timeout_ms: i32,
    /// Zero for a new one.
    pub(crate) session: i64,
    pub(crate) password: Bytes,
}

impl Greeting {
    pub(crate) fn new_session(timeout_ms: i32) -> Self {
        Self { seen: 0, timeout_ms, session: 0, password: Bytes::from_static(&[0; PASSWORD_BYTES]) }
    }

    pub(crate) fn write(&self, out: &mut BytesMut) {
        out.put_i32(length(4 + 8 + 4 + 8 + 4 + self.password.len() + 1));
        out.put_i32(0);
        out.put_i64(self.seen);
        out.put_i32(self.timeout_ms);
        out.put_i64(self.session);
        out.put_i32(length(self.password.len()));
        out.put_slice(&self.password);
        // No server that has lost the others is good enough.
        out.put_u8(0);
    }
}

/// Without the password, by which anybody could take the session over.
impl fmt::Debug for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seen, timeout_ms, session, password: _ } = self;
        f.debug_struct("Greeting")
            .field("seen", seen)
            .field("timeout_ms", timeout_ms)
            .field("session", session)
            .finish_non_exhaustive()
    }
}

/// What the server says to a greeting.
#[derive(Clone)]
pub(crate) struct Welcome {
    pub(crate) timeout_ms: i32,
    /// Zero: the session that was asked for is over.
    pub(crate) session: i64,
    pub(crate) password: Bytes,
}

impl Welcome {
    pub(crate) fn read(mut message: Bytes) -> Result<Self, Odd> {
        let _version = int(&mut message)?;
        let (timeout_ms, session) = (int(&mut message)?, long(&mut message)?);
        Ok(Self { timeout_ms, session, password: buffer(&mut message)? })
    }
}

/// Without the password.
impl fmt::Debug for Welcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeout_ms, session, password: _ } = self;
        f.debug_struct("Welcome")
            .field("timeout_ms", timeout_ms)
            .field("session", session)
            .finish_non_exhaustive()
    }
}

/// Takes a whole message from what was received, if there is one.
pub(crate) fn take_message(received: &mut BytesMut) -> Result<Option<Bytes>, Odd> {
    let Some(length) = received.first_chunk().map(|length| i32::from_be_bytes(*length)) else {
        return Ok(None);
    };
    let length = usize::try_from(length).ok().filter(|length| *length <= MESSAGE_MAX).ok_or(Odd)?;
    if received.len() < 4 + length {
        return Ok(None);
    }
    received.advance(4);
    Ok(Some(received.split_to(length).freeze()))
}

/// An answer: to which call, as of which transaction, and what.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) number: i32,
    pub(crate) seen: i64,
    pub(crate) outcome: Result<Bytes, Code>,
}

impl Answer {
    pub(crate) fn read(mut message: Bytes) -> Result<Self, Odd> {
        let (number, seen, code) = (int(&mut message)?, long(&mut message)?, int(&mut message)?);
        Ok(Self { number, seen, outcome: if code == 0 { Ok(message) } else { Err(Code(code)) } })
    }
}

/// Of a node that changed: which one, and whether it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) path: String,
    pub(crate) what: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Deleted,
    Data,
    Children,
    Other,
}

impl Event {
    pub(crate) fn read(mut message: Bytes) -> Result<Self, Odd> {
        let (what, _state) = (int(&mut message)?, int(&mut message)?);
        let what = match what {
            2 => Change::Deleted,
            3 => Change::Data,
            4 => Change::Children,
            _ => Change::Other,
        };
        Ok(Self { path: text(&mut message)?, what })
    }
}

/// What is known of a node beside what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Their numbers in the order of all changes: the transactions that made it, and changed what it holds last.
    pub(crate) made_by: i64,
    pub(crate) changed_by: i64,
    /// When it was made and last changed, by the leader's wall clock, in milliseconds.
    pub(crate) made_at: i64,
    pub(crate) changed_at: i64,
    pub(crate) version: i32,
    /// The session that it ends with. Zero: none.
    pub(crate) owner: i64,
    /// How many children it has.
    pub(crate) children: i32,
}

impl Stat {
    pub(crate) fn read(message: &mut Bytes) -> Result<Self, Odd> {
        let (made_by, changed_by) = (long(message)?, long(message)?);
        let (made_at, changed_at) = (long(message)?, long(message)?);
        let (version, _children_version, _acl_version) = (int(message)?, int(message)?, int(message)?);
        let owner = long(message)?;
        let (_bytes, children) = (int(message)?, int(message)?);
        let _last_child = long(message)?;
        Ok(Self { made_by, changed_by, made_at, changed_at, version, owner, children })
    }
}

/// A node that was made: its whole path, with the number that the server gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) path: String,
    pub(crate) stat: Stat,
}

impl Created {
    pub(crate) fn read(mut message: Bytes) -> Result<Self, Odd> {
        Ok(Self { path: text(&mut message)?, stat: Stat::read(&mut message)? })
    }
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Data {
    pub(crate) bytes: Bytes,
    pub(crate) stat: Stat,
}

impl Data {
    pub(crate) fn read(mut message: Bytes) -> Result<Self, Odd> {
        Ok(Self { bytes: buffer(&mut message)?, stat: Stat::read(&mut message)? })
    }
}

/// The names of a node's children, in no order.
pub(crate) fn children(mut message: Bytes) -> Result<Vec<String>, Odd> {
    texts(&mut message)
}

/// Who may do what with a node: for each rule what it allows, by which scheme, and whom.
pub(crate) fn acl(mut message: Bytes) -> Result<Vec<(i32, String, String)>, Odd> {
    let rule = |message: &mut Bytes| Ok((int(message)?, text(message)?, text(message)?));
    (0..count(&mut message)?).map(|_| rule(&mut message)).collect()
}

/// What came of several operations that were all done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    /// The paths of all nodes that were made.
    pub(crate) made: Vec<String>,
    /// Those that hold something else since.
    pub(crate) changed: Vec<Stat>,
}

/// What was done, if all was; else which operation failed, by its place, and why.
pub(crate) fn all(mut message: Bytes) -> Result<Result<Done, (usize, Code)>, Odd> {
    let mut done = Done::default();
    for place in 0.. {
        let (operation, is_last, _code) = (int(&mut message)?, byte(&mut message)? != 0, int(&mut message)?);
        if is_last {
            break;
        }
        match operation {
            -1 => {
                let code = Code(int(&mut message)?);
                // Those before the one that failed are told that all went well.
                if code.0 != 0 && code != Code::NEIGHBOUR_FAILED {
                    return Ok(Err((place, code)));
                }
            }
            // What a server says of each that was made, if it was one of several: its path alone.
            1 => done.made.push(text(&mut message)?),
            15 | 19 => {
                done.made.push(text(&mut message)?);
                Stat::read(&mut message)?;
            }
            5 => done.changed.push(Stat::read(&mut message)?),
            2 | 13 => {}
            _ => return Err(Odd),
        }
    }
    Ok(Ok(done))
}

/// For each of several nodes the names of its children, or why they are not told.
pub(crate) fn children_of_all(mut message: Bytes) -> Result<Vec<Result<Vec<String>, Code>>, Odd> {
    let mut all = Vec::new();
    loop {
        let (operation, is_last, _code) = (int(&mut message)?, byte(&mut message)? != 0, int(&mut message)?);
        if is_last {
            return Ok(all);
        }
        all.push(match operation {
            -1 => Err(Code(int(&mut message)?)),
            8 => Ok(texts(&mut message)?),
            _ => return Err(Odd),
        });
    }
}

fn byte(message: &mut Bytes) -> Result<u8, Odd> {
    message.try_get_u8().map_err(|_| Odd)
}

fn int(message: &mut Bytes) -> Result<i32, Odd> {
    message.try_get_i32().map_err(|_| Odd)
}

fn long(message: &mut Bytes) -> Result<i64, Odd> {
    message.try_get_i64().map_err(|_| Odd)
}

/// Of a list, which has at least four bytes for each of its members.
fn count(message: &mut Bytes) -> Result<usize, Odd> {
    let count = int(message)?.max(0);
    usize::try_from(count).ok().filter(|count| *count <= message.len() / 4).ok_or(Odd)
}

/// Bytes with their length, which is -1 where there is nothing.
fn buffer(message: &mut Bytes) -> Result<Bytes, Odd> {
    let length = int(message)?;
    if length < 0 {
        return Ok(Bytes::new());
    }
    let length = usize::try_from(length).ok().filter(|length| *length <= message.len()).ok_or(Odd)?;
    Ok(message.split_to(length))
}

fn texts(message: &mut Bytes) -> Result<Vec<String>, Odd> {
    (0..count(message)?).map(|_| text(message)).collect()
}

fn text(message: &mut Bytes) -> Result<String, Odd> {
    String::from_utf8(buffer(message)?.into()).map_err(|_| Odd)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_is_taken_when_it_is_whole() {
        let mut received = BytesMut::from(&[0, 0, 0, 2, 7][..]);
        assert_eq!(take_message(&mut received), Ok(None));
        received.put_slice(&[8, 0]);
        assert_eq!(take_message(&mut received), Ok(Some(Bytes::from_static(&[7, 8]))));
        assert_eq!((take_message(&mut received), &received[..]), (Ok(None), &[0][..]));
        for length in [-1, i32::MAX] {
            assert_eq!(take_message(&mut BytesMut::from(&length.to_be_bytes()[..])), Err(Odd), "{length}");
        }
    }

    #[test]
    fn a_request_begins_with_its_length_its_number_and_its_operation() {
        let mut out = BytesMut::new();
        Request::delete("/a").write(5, &mut out);
        assert_eq!(
            out[..],
            [0, 0, 0, 18, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0, 2, b'/', b'a', 255, 255, 255, 255]
        );
    }

    #[test]
    fn no_password_is_shown() {
        let password = Bytes::from_static(b"open sesame");
        let greeting = Greeting { password: password.clone(), ..Greeting::new_session(7_000) };
        let welcome = Welcome { timeout_ms: 7_000, session: 1, password };
        for shown in [format!("{greeting:?}"), format!("{welcome:?}")] {
            assert!(shown.contains("7000") && !shown.contains("sesame"), "{shown}");
        }
        let login = format!("{:?}", Request::login("ann:open sesame"));
        assert!(login.contains("100") && !login.contains("sesame"), "{login}");
    }

    proptest! {
        #[test]
        fn what_anybody_sends_is_read_or_odd(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _ = take_message(&mut BytesMut::from(&bytes[..]));
            let _ = Welcome::read(bytes.clone());
            let _ = Answer::read(bytes.clone());
            let _ = Event::read(bytes.clone());
            let _ = Created::read(bytes.clone());
            let _ = Data::read(bytes.clone());
            let _ = children(bytes.clone());
            let _ = acl(bytes.clone());
            let _ = children_of_all(bytes.clone());
            let _ = all(bytes);
        }
    }
}
