use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use crate::{Error, ErrorKind, Result, WallTime};

/// The most bytes of a topic, and of a key.
pub const TOPIC_MAX: usize = 255;

/// The most bytes of a payload: 256 KiB. What is larger is kept elsewhere, and the message says where.
pub const PAYLOAD_MAX: usize = 256 * 1024;

/// What is to be sent when the transaction is committed, and not at all otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub(super) topic: String,
    pub(super) key: Option<String>,
    pub(super) payload: Bytes,
}

impl Message {
    /// A message about a topic, without a key: it is sent in no order.
    ///
    /// Errors with [`ErrorKind::InvalidRequest`] for a topic that is not 1 to 255 bytes of UTF-8 without control characters, and
    /// for a payload of more than [`PAYLOAD_MAX`] bytes.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Result<Self> {
        let (topic, payload) = (topic.into(), payload.into());
        check("topic", &topic)?;
        if payload.len() > PAYLOAD_MAX {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "a payload has at most {PAYLOAD_MAX} bytes, this one has {}: keep it elsewhere, and send where it is",
                    payload.len()
                ),
            ));
        }
        Ok(Self { topic, key: None, payload })
    }

    /// The same message with a key: those of one key are sent one after the other, in the order in which their transactions were
    /// committed. Errors as [`Self::new`] does for a topic.
    pub fn key(mut self, key: impl Into<String>) -> Result<Self> {
        let key = key.into();
        check("key", &key)?;
        self.key = Some(key);
        Ok(self)
    }
}

fn check(what: &str, text: &str) -> Result<()> {
    if (1..=TOPIC_MAX).contains(&text.len()) && !text.contains(char::is_control) {
        return Ok(());
    }
    let shown: String = text.chars().take(100).collect();
    Err(Error::new(
        ErrorKind::InvalidRequest,
        format!("{shown:?} is no {what}: it has 1 to {TOPIC_MAX} bytes of UTF-8 without control characters"),
    ))
}

/// What a message is called, whenever and by whomever it is sent: a random UUID, as in `2f1c6a0e-9d3b-4a57-8a35-0c6f5f1d9e77`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u128);

impl MessageId {
    pub(super) fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|why| {
            Error::new(ErrorKind::Unavailable, "the operating system gives no random bytes").because(why)
        })?;
        // Version 4 of the variant of RFC 9562.
        let random = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62);
        Ok(Self(random | 0x4 << 76 | 0x2 << 62))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl FromStr for MessageId {
    type Err = Error;

    /// Errors with [`ErrorKind::InvalidRequest`].
    fn from_str(text: &str) -> Result<Self> {
        let hex: String = text.split('-').collect();
        let is_one = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u128::from_str_radix(&hex, 16) {
            Ok(number) if is_one => Ok(Self(number)),
            _ => Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("{text:?} is no message: it is a UUID, as `ringfence outbox status` prints it"),
            )),
        }
    }
}

/// A message as a [`Sink`](super::Sink) is given it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// What it is called. A message that is sent again has the id that it had.
    pub id: MessageId,
    /// Rises with every message of a key: whoever keeps the highest of each key that he has dealt with, and drops what is not
    /// above it, deals with each message once.
    pub number: u64,
    /// What it is about.
    pub topic: String,
    /// Within which it is in order, if any.
    pub key: Option<String>,
    /// Itself.
    pub payload: Bytes,
    /// Which time it is given to a sink, from 1. From 2 on the sink may have had it before.
    pub attempt: u64,
    /// When it was enqueued, by the database's clock.
    pub enqueued_at: WallTime,
    /// How often a sink has refused it.
    pub(super) refusals: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_uuid_of_version_4_and_reads_back() {
        for _ in 0..100 {
            let id = MessageId::random().unwrap();
            let text = id.to_string();
            assert_eq!(text.parse::<MessageId>().unwrap(), id);
            assert_eq!((text.len(), &text[14..15]), (36, "4"), "{text}");
            assert!("89ab".contains(&text[19..20]), "{text}");
        }
        assert_ne!(MessageId::random().unwrap(), MessageId::random().unwrap());
        for text in ["", "1", "2f1c6a0e-9d3b-4a57-8a35-0c6f5f1d9e7g", "+f1c6a0e9d3b4a578a350c6f5f1d9e77"] {
            let error = text.parse::<MessageId>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{text}");
        }
    }

    #[test]
    fn a_message_has_limits() {
        let longest = "x".repeat(TOPIC_MAX);
        let payload = vec![0; PAYLOAD_MAX];
        assert!(Message::new(&longest, payload.clone()).unwrap().key(&longest).is_ok());
        assert!(Message::new("t", "").is_ok());
        for bad in ["", &format!("{longest}x"), "a\nb", "a\u{85}b"] {
            let error = Message::new(bad, "").unwrap_err();
            assert!(error.to_string().contains("is no topic: it has 1 to 255 bytes"), "{error}");
            let error = Message::new("t", "").unwrap().key(bad).unwrap_err();
            assert!(error.to_string().contains("is no key"), "{error}");
        }
        let error = Message::new("t", [payload, vec![0]].concat()).unwrap_err();
        assert!(error.to_string().contains("at most 262144 bytes, this one has 262145"), "{error}");
    }
}
