//! Passwords that are wrong, rights that are missing, and what is said about it: never the password.

use std::io;
use std::sync::{Arc, Mutex};

use insta::assert_snapshot;
use ringfence_core::{Effect, ErrorKind, Mode, Retry};
use ringfence_servers::{RedisOptions, RedisServer};
use tracing_subscriber::filter::LevelFilter;

use crate::common::{ask, connect, hold, name};
use crate::{expect, message};

/// Nobody says this by accident.
const SECRET: &str = "Xyzzy-planted-7";
const URL_SECRET: &str = "Xyzzy-planted%2D7";

/// All that is logged, by anybody, at any level.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Gathers what this thread logs, as long as the guard lives.
    fn gather(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("nobody panics while logging").clone()).expect("a log is text")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics while logging").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[track_caller]
fn without_secret(shown: &str) {
    assert!(!shown.contains("planted"), "the password is shown: {shown}");
}

/// A server with a user `ann`, whose rights these are and whose password is the secret one.
async fn server_for_ann(rights: &[&str]) -> Option<RedisServer> {
    let server = RedisServer::start().await?;
    let password = format!(">{SECRET}");
    server.command(&[&["ACL", "SETUSER", "ann", "on", &password], rights].concat()).await;
    Some(server)
}

fn as_ann(server: &RedisServer) -> String {
    format!("redis://ann:{URL_SECRET}@127.0.0.1:{}", server.port())
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_never_shown() {
    let log = Log::default();
    let _gathers = log.gather();
    let Some(server) = RedisOptions::new().password("another one").start().await else { return };
    for user in ["", "ann", "default"] {
        let url = format!("redis://{user}:{URL_SECRET}@127.0.0.1:{}", server.port());
        let error = connect(&url).await.expect_err("that is not its password");
        expect(&error, ErrorKind::Refused, Retry::Never, Effect::None);
        without_secret(&format!("{error} {error:?} {:?}", std::error::Error::source(&error)));
        if user == "ann" {
            assert_snapshot!(message(&error, server.port()), @r#"redis://ann:***@127.0.0.1:PORT: it refuses our user or password: check the URL"#);
        }
    }
    let error =
        connect(&format!("redis://127.0.0.1:{}", server.port())).await.expect_err("it wants a password");
    expect(&error, ErrorKind::Refused, Retry::Never, Effect::None);
    assert_snapshot!(message(&error, server.port()), @r#"redis://127.0.0.1:PORT: it refuses our user or password: check the URL"#);
    without_secret(&log.text());
}

#[tokio::test]
async fn the_right_password_is_never_shown_whatever_happens_later() {
    let log = Log::default();
    let _gathers = log.gather();
    let Some(server) = RedisOptions::new().password(SECRET).start().await else { return };
    let url = format!("redis://:{URL_SECRET}@127.0.0.1:{}", server.port());
    let client = connect(&url).await.expect("a server that runs");
    let held = hold(&client, &name("orders/42"), Mode::Exclusive).await;
    without_secret(&format!("{client} {client:?} {held:?}"));
    assert_eq!(client.to_string(), url.replace(URL_SECRET, "***"));

    // The password is changed under a client that is connected.
    server.command(&["CONFIG", "SET", "requirepass", "another one"]).await;
    server.command(&["-a", "another one", "CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let error = loop {
        match ask(&client, &name("orders/42"), Mode::Exclusive).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            Err(error) => break error,
            Ok(attempt) => panic!("its connection was killed: {attempt:?}"),
        }
    };
    expect(&error, ErrorKind::Refused, Retry::Never, Effect::None);
    without_secret(&format!("{error} {error:?} {client:?} {}", log.text()));
}

#[tokio::test]
async fn rights_that_are_missing_are_named() {
    for (rights, connects) in [
        (&["+@all", "~*"][..], false),
        (&["+@all", "-subscribe", "~*", "&*"], false),
        (&["+@all", "-evalsha", "~*", "&*"], true),
        (&["+@all", "-script", "-eval", "~*", "&*"], true),
        (&["+@all", "-set", "~*", "&*"], true),
        (&["+@all", "~another:*", "&*"], true),
        (&["+@all", "%R~ringfence:*", "&*"], true),
    ] {
        let log = Log::default();
        let _gathers = log.gather();
        let Some(server) = server_for_ann(rights).await else { return };
        let connected = connect(&as_ann(&server)).await;
        assert_eq!(connected.is_ok(), connects, "{rights:?}: {connected:?}");
        let error = match connected {
            Err(error) => error,
            Ok(client) => ask(&client, &name("orders/42"), Mode::Exclusive)
                .await
                .expect_err("it has no right to do that"),
        };
        expect(&error, ErrorKind::Refused, Retry::Never, Effect::None);
        without_secret(&format!("{error:?} {}", log.text()));
        let shown = message(&error, server.port());
        assert!(shown.contains("redis://ann:***@127.0.0.1:PORT"), "{rights:?}: {shown}");
        assert!(shown.contains("its access rules keep us out"), "{rights:?}: {shown}");
    }
    let Some(server) = server_for_ann(&["+@all", "~another:*", "&*"]).await else { return };
    let client = connect(&as_ann(&server)).await.expect("it may connect");
    let error =
        ask(&client, &name("orders/42"), Mode::Exclusive).await.expect_err("it has no right to that key");
    assert_snapshot!(message(&error, server.port()), @r#"redis://ann:***@127.0.0.1:PORT: its access rules keep us out; the rule that we need is in docs/redis.md, and `ringfence doctor` prints it"#);
}

#[tokio::test]
async fn a_url_that_is_wrong_does_not_show_its_password() {
    for url in [
        format!("redis://ann:{SECRET}@one,two"),
        format!("redis://ann:{SECRET}@one:port"),
        format!("redis://ann:{SECRET}@one/orders"),
        format!("redis://ann:{SECRET}@"),
        format!("redis://ann:{SECRET}"),
        format!("redis:ann:{SECRET}@one"),
        format!("redis//ann:{SECRET}@one"),
    ] {
        let error = connect(&url).await.expect_err("it names no server");
        without_secret(&format!("{error} {error:?}"));
    }
}
