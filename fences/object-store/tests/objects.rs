//! Fenced objects on a store that speaks S3, whose ETags are hashes of what is stored, and on one in memory, whose ETags are counted.

use std::sync::Arc;

use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, BackoffConfig, ObjectStore, ObjectStoreExt, PutOptions, RetryConfig,
};
use ringfence_core::{Effect, Error, ErrorKind, FencingToken, Result};
use ringfence_object_store::{FencedObject, FencedObjects, SALT_BYTES, VALUE_MAX};
use ringfence_servers::{Proxy, S3};
use ringfence_testkit::{PATIENCE, drop_after};

fn token(text: &str) -> FencingToken {
    text.parse().expect("a token")
}

fn s3(port: u16) -> AmazonS3Builder {
    // Its client wants to know whose cryptography to take, also where it speaks in the clear.
    let _ = rustls::crypto::ring::default_provider().install_default();
    AmazonS3Builder::new()
        .with_endpoint(format!("http://127.0.0.1:{port}"))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(S3::BUCKET)
        .with_access_key_id("anybody")
        .with_secret_access_key("anything")
        // What it repeats on its own would hide what we do.
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 0,
            retry_timeout: PATIENCE,
        })
}

/// A store, with what keeps it alive.
struct Stage {
    objects: FencedObjects,
    /// The same store, for whoever knows nothing of fences.
    bare: Arc<dyn ObjectStore>,
    /// How many bytes are added to a value.
    salt: usize,
    _server: Option<S3>,
}

impl Stage {
    async fn on_memory() -> Option<Self> {
        let store = Arc::new(InMemory::new());
        let objects = FencedObjects::new(Arc::clone(&store), "probes").await.unwrap();
        Some(Self { objects, bare: store, salt: 0, _server: None })
    }

    async fn on_s3() -> Option<Self> {
        let server = S3::start().await?;
        let store: Arc<AmazonS3> = Arc::new(s3(server.port()).build().unwrap());
        let objects = FencedObjects::new(Arc::clone(&store), "probes").await.unwrap();
        Some(Self { objects, bare: store, salt: SALT_BYTES, _server: Some(server) })
    }

    fn object(&self, path: &str) -> FencedObject {
        self.objects.object(path).unwrap()
    }

    /// What is stored, with everything that is no part of the value.
    async fn stored(&self, path: &str) -> Bytes {
        self.bare.get(&Path::from(path)).await.unwrap().bytes().await.unwrap()
    }
}

fn expect_error<T>(what: &str, result: Result<T>, kind: ErrorKind, words: &[&str]) -> Error {
    let Err(error) = result else { panic!("{what}: it was let through") };
    assert_eq!(error.kind(), kind, "{what}: {error:?}");
    for word in words {
        assert!(error.to_string().contains(word), "{what}: {error} does not say {word:?}");
    }
    error
}

/// Each case on each store.
macro_rules! cases {
    ($($case:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $case() {
                super::$case(super::Stage::on_memory().await.unwrap()).await;
            })*
        }

        mod s3 {
            $(#[tokio::test]
            async fn $case() {
                let Some(stage) = super::Stage::on_s3().await else { return };
                super::$case(stage).await;
            })*
        }
    };
}

cases! {
    a_stale_token_and_a_collision_are_refused
    what_was_opened_by_a_younger_holder_is_not_written_by_an_older_one
    nothing_is_lost_and_nothing_stale_is_written_however_holders_race
    a_content_that_comes_back_is_no_condition_that_holds_again
    an_object_of_somebody_else_is_taken_as_it_is
    what_is_put_past_the_fence_is_told
    what_is_too_large_or_no_path_is_refused
    an_opening_that_is_dropped_is_made_again
}

async fn a_stale_token_and_a_collision_are_refused(stage: Stage) {
    let object = stage.object("dir/it's \"a\" %41 ü");
    assert_eq!(object.read().await.unwrap(), None);
    let mut open = object.open(token("5.ab")).await.unwrap();
    assert_eq!((open.value(), object.read().await.unwrap()), (None, None), "opened is not written");
    open.write("first").await.unwrap();
    let again = object.open(token("5.ab")).await.unwrap();
    assert_eq!((again.value().unwrap(), again.token()), (&Bytes::from("first"), token("5.ab")));
    for (late, kind, words) in [
        ("4.ab", ErrorKind::Stale, ["4.ab is stale", "5.ab"]),
        ("5.cd", ErrorKind::TokenCollision, ["5.cd has the sequence of 5.ab", "object dir/"]),
    ] {
        let error = expect_error(late, object.open(token(late)).await, kind, &words);
        assert_eq!((error.mark(), error.effect()), (Some(token("5.ab")), Effect::None), "{late}");
    }
    let mut open = object.open(token("6.cd")).await.unwrap();
    open.write("").await.unwrap();
    assert_eq!(object.read().await.unwrap(), Some(Bytes::new()), "empty is a value");
}

/// The fence-first gap: the younger one has opened, and has not written yet.
async fn what_was_opened_by_a_younger_holder_is_not_written_by_an_older_one(stage: Stage) {
    let object = stage.object("it");
    object.open(token("1.a")).await.unwrap().write("old").await.unwrap();
    let mut old = object.open(token("1.a")).await.unwrap();
    let mut young = object.open(token("2.b")).await.unwrap();
    assert_eq!(young.value().unwrap(), "old");
    let error = expect_error("late", old.write("stale").await, ErrorKind::Stale, &["1.a", "2.b"]);
    assert_eq!((error.effect(), error.mark()), (Effect::None, Some(token("2.b"))));
    assert_eq!(object.read().await.unwrap().unwrap(), "old", "nothing was written");
    young.write("young").await.unwrap();
    young.write("younger").await.unwrap();
    let error = expect_error("later", old.write("stale").await, ErrorKind::Stale, &["1.a", "2.b"]);
    assert_eq!(error.effect(), Effect::Unknown, "a write came between, and might have replaced it");
    assert_eq!(object.read().await.unwrap().unwrap(), "younger");
    assert_eq!(stage.stored("it").await.len(), "younger".len() + stage.salt);
    let mut twin = object.open(token("2.b")).await.unwrap();
    twin.write("twin").await.unwrap();
    expect_error(
        "same token",
        young.write("again").await,
        ErrorKind::NotOpened,
        &["same token", "open it again"],
    );
}

/// Each believes that it holds, and adds a line for as long as it is let.
async fn nothing_is_lost_and_nothing_stale_is_written_however_holders_race(stage: Stage) {
    const ROUNDS: usize = 5;
    let holders = (1..=5u64).map(|sequence| {
        let object = stage.object("log");
        tokio::spawn(async move {
            let token = token(&format!("{sequence}.{sequence}"));
            let mut written = 0;
            while written < ROUNDS {
                let outcome = async {
                    let mut open = object.open(token).await?;
                    let mut lines = open.value().cloned().unwrap_or_default().to_vec();
                    lines.extend(format!("{sequence}\n").into_bytes());
                    open.write(lines).await
                };
                match outcome.await {
                    Ok(()) => written += 1,
                    Err(error) if error.kind() == ErrorKind::Stale => break,
                    Err(error) if error.kind() == ErrorKind::Unavailable => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            written
        })
    });
    let mut written = 0;
    for holder in holders.collect::<Vec<_>>() {
        written += tokio::time::timeout(PATIENCE, holder).await.expect("it ends").unwrap();
    }
    let log = stage.object("log").read().await.unwrap().unwrap();
    let log: Vec<u64> =
        String::from_utf8(log.to_vec()).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(log.len(), written, "what was written is there, once: {log:?}");
    assert!(log.is_sorted(), "a stale write: {log:?}");
    assert_eq!(log.iter().filter(|line| **line == 5).count(), ROUNDS, "nobody overtakes the last: {log:?}");
}

async fn a_content_that_comes_back_is_no_condition_that_holds_again(stage: Stage) {
    let object = stage.object("it");
    let mut first = object.open(token("1.a")).await.unwrap();
    first.write("x").await.unwrap();
    let mut second = object.open(token("1.a")).await.unwrap();
    second.write("y").await.unwrap();
    second.write("x").await.unwrap();
    expect_error("it was changed", first.write("z").await, ErrorKind::NotOpened, &["same token"]);
    assert_eq!(object.read().await.unwrap().unwrap(), "x");
}

async fn an_object_of_somebody_else_is_taken_as_it_is(stage: Stage) {
    let path = Path::from("theirs.json");
    let attributes = Attributes::from_iter([
        (Attribute::ContentType, "application/json"),
        (Attribute::Metadata("owner".into()), "them"),
    ]);
    let put = PutOptions { attributes: attributes.clone(), ..PutOptions::default() };
    stage.bare.put_opts(&path, "{}".into(), put).await.unwrap();
    let object = stage.object("theirs.json");
    assert_eq!(object.read().await.unwrap().unwrap(), "{}");
    let mut open = object.open(token("1.a")).await.unwrap();
    assert_eq!(open.value().unwrap(), "{}");
    assert_eq!(object.read().await.unwrap().unwrap(), "{}", "opening changes no value");
    open.write("{ }").await.unwrap();
    let got = stage.bare.get(&path).await.unwrap();
    for (key, value) in &attributes {
        assert_eq!(got.attributes.get(key), Some(value), "{key:?}");
    }
    let stamp = got.attributes.get(&Attribute::Metadata("ringfence".into())).unwrap().to_string();
    assert!(
        stamp.starts_with("mark=1.a ") && stamp.contains(&format!(" salt={} written=1.a", stage.salt)),
        "{stamp}"
    );
}

async fn what_is_put_past_the_fence_is_told(stage: Stage) {
    let (object, path) = (stage.object("it"), Path::from("it"));
    let mut open = object.open(token("5.a")).await.unwrap();
    stage.bare.put(&path, "by hand".into()).await.unwrap();
    let error = expect_error("by hand", open.write("x").await, ErrorKind::NotOpened, &["without the fence"]);
    assert_eq!(error.effect(), Effect::Unknown);
    let mut open = object.open(token("5.a")).await.unwrap();
    assert_eq!(open.value().unwrap(), "by hand");
    stage.bare.delete(&path).await.unwrap();
    expect_error("deleted", open.write("x").await, ErrorKind::NotOpened, &["without the fence", "deleted"]);
    assert_eq!(object.read().await.unwrap(), None);
    for stamp in ["", "mark=1.a", "mark=1.a put=1 salt=18"] {
        let attributes = Attributes::from_iter([(Attribute::Metadata("ringfence".into()), stamp)]);
        let put = PutOptions { attributes, ..PutOptions::default() };
        stage.bare.put_opts(&path, "x".into(), put).await.unwrap();
        // A store need not keep what is empty.
        if stage
            .bare
            .get(&path)
            .await
            .unwrap()
            .attributes
            .get(&Attribute::Metadata("ringfence".into()))
            .is_some()
        {
            expect_error(stamp, object.open(token("5.a")).await, ErrorKind::Corrupt, &["object it"]);
            expect_error(stamp, object.read().await, ErrorKind::Corrupt, &["object it"]);
        }
    }
}

async fn what_is_too_large_or_no_path_is_refused(stage: Stage) {
    let mut open = stage.object("it").open(token("1.a")).await.unwrap();
    let large = Bytes::from(vec![0; VALUE_MAX + 1]);
    expect_error(
        "too large",
        open.write(large).await,
        ErrorKind::InvalidRequest,
        &["67108865 bytes", "67108864"],
    );
    open.write("small").await.unwrap();
    for path in ["a//b", "../up", "nul\0"] {
        expect_error(path, stage.objects.object(path), ErrorKind::InvalidRequest, &["object"]);
    }
}

async fn an_opening_that_is_dropped_is_made_again(stage: Stage) {
    let object = stage.object("it");
    for polls in 1..6 {
        drop_after(polls, object.open(token("3.a"))).await;
        let mut open = object.open(token("3.a")).await.unwrap();
        drop_after(polls, open.write("dropped")).await;
        let mut open = object.open(token("3.a")).await.unwrap();
        open.write("done").await.unwrap();
    }
}

/// Returns when a value stands in the object, past the network that loses answers.
async fn landed(object: &FencedObject, value: &str) {
    let looks = async {
        while object.read().await.unwrap().is_none_or(|found| found != value) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looks).await.expect("the put lands");
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_lands_once_and_is_known() {
    let Some(server) = S3::start().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let objects = FencedObjects::new(s3(proxy.port()).build().unwrap(), "probes").await.unwrap();
    let direct = FencedObjects::new(s3(server.port()).build().unwrap(), "probes").await.unwrap();
    let (object, direct) = (objects.object("it").unwrap(), direct.object("it").unwrap());
    let mut open = object.open(token("1.a")).await.unwrap();
    proxy.swallow_replies();
    let (written, ()) = tokio::join!(open.write("once"), async {
        landed(&direct, "once").await;
        proxy.mend();
    });
    written.unwrap();
    open.write("twice").await.expect("its condition is its own write");
    assert_eq!(object.read().await.unwrap().unwrap(), "twice");
}

#[tokio::test]
async fn a_write_that_landed_before_it_was_overtaken_is_known_to_have() {
    let Some(server) = S3::start().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let objects = FencedObjects::new(s3(proxy.port()).build().unwrap(), "probes").await.unwrap();
    let direct = FencedObjects::new(s3(server.port()).build().unwrap(), "probes").await.unwrap();
    for (path, is_replaced) in [("opened", false), ("written", true)] {
        let mut old = objects.object(path).unwrap().open(token("1.a")).await.unwrap();
        let young = direct.object(path).unwrap();
        proxy.swallow_replies();
        let (written, ()) = tokio::join!(old.write("old"), async {
            landed(&young, "old").await;
            let mut open = young.open(token("2.b")).await.unwrap();
            if is_replaced {
                open.write("young").await.unwrap();
            }
            proxy.mend();
        });
        if is_replaced {
            let error = expect_error("replaced", written, ErrorKind::Stale, &["1.a", "2.b"]);
            assert_eq!(error.effect(), Effect::Unknown, "nobody can tell any more");
        } else {
            written.expect("it is there");
        }
        expect_error("overtaken", old.write("stale").await, ErrorKind::Stale, &["1.a", "2.b"]);
        assert_eq!(young.read().await.unwrap().unwrap(), if is_replaced { "young" } else { "old" });
    }
}

#[tokio::test]
async fn a_store_that_is_gone_is_an_error_with_an_unknown_effect() {
    let Some(server) = S3::start().await else { return };
    let objects = FencedObjects::new(s3(server.port()).build().unwrap(), "probes").await.unwrap();
    let object = objects.object("it").unwrap();
    let mut open = object.open(token("1.a")).await.unwrap();
    drop(server);
    let error = expect_error("gone", open.write("x").await, ErrorKind::Unavailable, &["object it"]);
    assert_eq!(error.effect(), Effect::Unknown);
    let error = expect_error("gone", object.open(token("1.a")).await, ErrorKind::Unavailable, &["object it"]);
    assert_eq!(error.effect(), Effect::None);
}

#[tokio::test]
async fn a_store_that_cannot_write_on_condition_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let files = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let refused = FencedObjects::new(files, "probes").await;
    expect_error("files", refused, ErrorKind::Unsupported, &["object store LocalFileSystem", "fence=mark"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");

    let Some(server) = S3::start_unconditional().await else { return };
    let refused = FencedObjects::new(s3(server.port()).build().unwrap(), "probes").await;
    expect_error(
        "it ignores conditions",
        refused,
        ErrorKind::Unsupported,
        &["replaces an object", "fence=mark"],
    );
    let disabled = s3(server.port()).with_conditional_put(S3ConditionalPut::Disabled).build().unwrap();
    let refused = FencedObjects::new(disabled, "probes").await;
    expect_error("it is turned off", refused, ErrorKind::Unsupported, &["fence=mark"]);
    let refused =
        FencedObjects::new(s3(server.port()).with_bucket_name("no-such").build().unwrap(), "probes").await;
    expect_error("no bucket", refused, ErrorKind::Refused, &["no such bucket"]);
    let refused = FencedObjects::new(InMemory::new(), "a//b").await;
    expect_error("no folder", refused, ErrorKind::InvalidRequest, &["a//b"]);
}
