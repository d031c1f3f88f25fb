//! Servers that are none, or lie.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use redis::{Parser, Value};

/// Something that listens on a port of 127.0.0.1 and deals with each connection as it is told, until the test's process ends.
fn listen(deal: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of 127.0.0.1");
    let port = listener.local_addr().expect("a listener has an address").port();
    let deal = Arc::new(deal);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let deal = Arc::clone(&deal);
            std::thread::spawn(move || deal(stream));
        }
    });
    port
}

/// A server that hears something, says this, whatever it was, and hangs up when the client does.
pub(crate) fn says(words: &'static [u8]) -> u16 {
    listen(move |mut stream| {
        let mut heard = [0; 4096];
        while stream.read(&mut heard).is_ok_and(|length| length > 0) && stream.write_all(words).is_ok() {}
    })
}

/// A server that hangs up at once.
pub(crate) fn hangs_up() -> u16 {
    listen(drop)
}

/// A server that takes us in as Redis does, and then answers every command in this way; not at all where that is `None`.
pub(crate) fn answers(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> u16 {
    listen(move |mut stream| {
        let mut parser = Parser::new();
        while let Ok(Value::Array(words)) = parser.parse_value(&mut stream) {
            let word = |index: usize| words.get(index).map(redis::from_redis_value_ref::<String>);
            let command = word(0).and_then(Result::ok).unwrap_or_default();
            let reply = match command.as_str() {
                "HELLO" => Some(b"%2\r\n$5\r\nproto\r\n:3\r\n$4\r\nrole\r\n$6\r\nmaster\r\n".to_vec()),
                "CLIENT" => Some(b"+OK\r\n".to_vec()),
                "SUBSCRIBE" => {
                    let channel = word(1).and_then(Result::ok).unwrap_or_default();
                    let length = channel.len();
                    Some(format!(">3\r\n$9\r\nsubscribe\r\n${length}\r\n{channel}\r\n:1\r\n").into_bytes())
                }
                command => answer(command),
            };
            if reply.is_some_and(|reply| stream.write_all(&reply).is_err()) {
                return;
            }
        }
    })
}
