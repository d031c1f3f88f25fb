//! URLs, choices, and what a `Locks` says about itself.

use std::time::Duration;

use ringfence::{
    ErrorKind, ListQuery, Locks, RecordGuard, RecordKey, Severity, TokenKey, guarantees_of, schemes,
};

use crate::stage::{memory, millis, staged};

#[tokio::test]
async fn what_is_wrong_with_a_url_is_said() {
    for (url, says) in [
        ("memroy:", "did you mean memory:?"),
        ("pigeons:", "Compiled in: "),
        ("memory:?tlt=10s", "did you mean \"ttl\"?"),
        ("memory:?ttl=10", "with a unit"),
        ("memory:?ttl=10", "parameter ttl"),
        ("memory:?handovers=256", "0 to 255"),
        ("memory:?handovers=-1", "parameter handovers"),
        ("memory:?handover_time=x", "parameter handover_time"),
        ("memory:?ttl=1s&ttl=2s", "twice"),
        ("memory:/somewhere", "takes no path"),
        ("memory:?token_key_file=key", "an absolute path"),
        ("memory:?token_key_file=/nowhere/key", "cannot be read"),
        ("memory://host", "takes no host"),
        ("memory", "no scheme"),
    ] {
        let error = Locks::connect(url).await.unwrap_err();
        assert!(error.to_string().contains(says), "{url}: {error}");
    }
    assert_eq!(Locks::connect("memroy:").await.unwrap_err().kind(), ErrorKind::InvalidUrl);
    assert_eq!(Locks::connect("memory:?ttl=1ms").await.unwrap_err().kind(), ErrorKind::InvalidTtl);
    assert!(Locks::connect("memory:?ttl=0s").await.is_err());
}

#[tokio::test]
async fn a_url_sets_the_defaults_and_wins_over_the_builder() {
    let locks = Locks::builder().default_ttl(Duration::from_secs(7)).connect("memory:?ttl=9s").await.unwrap();
    assert_eq!(locks.lock("a").acquire().await.unwrap().ttl().as_duration(), Duration::from_secs(9));
    let locks = Locks::builder().default_ttl(Duration::from_secs(7)).connect("memory:").await.unwrap();
    assert_eq!(locks.lock("a").acquire().await.unwrap().ttl().as_duration(), Duration::from_secs(7));
    assert_eq!(
        memory().await.lock("a").acquire().await.unwrap().ttl().as_duration(),
        Duration::from_secs(30)
    );
}

#[tokio::test]
async fn a_url_names_the_key_that_tokens_are_sealed_with() {
    let bare = memory().await.lock("a").acquire().await.unwrap();
    assert_eq!(bare.presented_token(), bare.token().into());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, [7; 32]).unwrap();
    let url = format!("memory:?token_key_file={}", file.path().display());
    let locks = Locks::builder().token_key(TokenKey::new(&[8; 32]).unwrap()).connect(&url).await.unwrap();
    let guard = locks.lock("a").acquire().await.unwrap();
    let shown = guard.presented_token();
    assert_eq!(TokenKey::new(&[7; 32]).unwrap().verify(guard.name(), &shown).unwrap(), guard.token());
    assert_eq!(locks.token_key().unwrap().verify(guard.name(), &shown).unwrap(), guard.token());
    let mac = shown.reveal().rsplit_once('.').unwrap().1.to_owned();
    assert!(!format!("{locks:?} {guard:?} {shown:?}").contains(&mac));
}

#[tokio::test]
async fn a_url_turns_handovers_off() {
    for url in ["memory:?handovers=0", "memory:?handover_time=0s"] {
        let locks = Locks::connect(url).await.unwrap();
        let first = locks.lock("a").acquire().await.unwrap();
        let grant = first.token().grant();
        let second = tokio::spawn(locks.lock("a").acquire());
        tokio::task::yield_now().await;
        first.release().await.unwrap();
        assert!(second.await.unwrap().unwrap().token().grant() > grant, "{url}");
    }
}

#[tokio::test]
async fn choices_out_of_range_are_refused() {
    assert_eq!(
        Locks::builder().label("").connect("memory:").await.unwrap_err().kind(),
        ErrorKind::InvalidRequest
    );
    assert_eq!(
        Locks::builder().metadata(&"x".repeat(2000)).connect("memory:").await.unwrap_err().kind(),
        ErrorKind::InvalidRequest
    );
    assert_eq!(
        Locks::builder().default_ttl(Duration::ZERO).connect("memory:").await.unwrap_err().kind(),
        ErrorKind::InvalidTtl
    );
}

#[tokio::test]
async fn holders_carry_the_label_of_the_locks() {
    let locks = Locks::builder().label("billing").metadata("v2").connect("memory:").await.unwrap();
    let _guard = locks.lock("a").acquire().await.unwrap();
    let state = locks.inspect("a").await.unwrap();
    let holder = &state.holders[0].holder;
    assert_eq!((holder.label(), holder.metadata()), ("billing", "v2"));
    assert!(!holder.host().is_empty());

    let locks = memory().await;
    let _guard = locks.lock("a").acquire().await.unwrap();
    let state = locks.inspect("a").await.unwrap();
    assert!(state.holders[0].holder.label().starts_with("behaviour"), "the program: {state:?}");
}

#[tokio::test]
async fn locks_say_what_they_stand_on() {
    let locks = memory().await;
    assert_eq!(locks.backend_url(), "memory:");
    assert_eq!(locks.guarantees(), &guarantees_of("memory:").unwrap());
    assert!(format!("{locks:?}").contains("memory:"));
    assert!(locks.lifeline().unwrap().is_none());
    assert!(schemes().contains(&"memory") && schemes().is_sorted());
    assert_eq!(guarantees_of("memroy:").unwrap_err().kind(), ErrorKind::InvalidUrl);
}

#[tokio::test]
async fn two_memories_share_nothing_and_clones_everything() {
    let (one, two) = (memory().await, memory().await);
    let _held = one.lock("a").acquire().await.unwrap();
    assert!(two.lock("a").try_acquire().await.unwrap().is_some());
    assert!(one.clone().lock("a").try_acquire().await.unwrap().is_none());
}

#[tokio::test]
async fn locks_are_listed_by_prefix() {
    let (locks, _stage) = staged();
    let _guards = locks.all(["a/1", "a/2", "b/1"]).acquire().await.unwrap();
    let page = locks.list(ListQuery::new("a/").limit(1)).await.unwrap();
    assert_eq!(page.items.len(), 1);
    let next = page.next.unwrap();
    let page = locks.list(ListQuery::new("a/").after(next)).await.unwrap();
    assert_eq!(page.items.iter().map(|state| state.name.as_str()).collect::<Vec<_>>(), ["a/2"]);
}

#[tokio::test]
async fn what_is_worst_is_said_first() {
    let (locks, _stage) = staged();
    let findings = locks.examine().await.unwrap();
    let about: Vec<_> = findings.iter().map(|finding| finding.about).collect();
    assert_eq!(about, ["trapdoor", "light", "scenery", "curtain"]);
    assert_eq!(memory().await.examine().await.unwrap()[0].severity, Severity::Fine);
}

#[tokio::test]
async fn a_record_is_behind_its_lock() {
    let locks = memory().await;
    let guard = locks.lock("a").acquire().await.unwrap();
    let record = locks.record("a").unwrap();
    assert_eq!(record.key(), &RecordKey::of("a".parse().unwrap()));
    assert!(record.read().await.unwrap().is_none());
    assert_eq!(record.write(guard.token(), "x").await.unwrap_err().kind(), ErrorKind::NotOpened);
    assert!(record.open(guard.token()).await.unwrap().record.is_none());
    record.write(guard.token(), "x").await.unwrap();
    assert_eq!(record.open(guard.token()).await.unwrap().record.unwrap().value, "x");
    let same = locks.records().read(record.key()).await.unwrap().unwrap();
    assert_eq!((same.value, same.written_with), ("x".into(), guard.token()));
    assert_eq!(locks.record("").unwrap_err().kind(), ErrorKind::InvalidName);
    guard.release().await.unwrap();
    let other = locks.lock("b").acquire().await.unwrap();
    assert_eq!(record.open(other.token()).await.unwrap_err().kind(), ErrorKind::Stale);
}

#[test]
fn locks_work_on_a_runtime_of_one_thread_and_of_many() {
    let build = |mut builder: tokio::runtime::Builder| builder.enable_all().build().unwrap();
    for runtime in [
        build(tokio::runtime::Builder::new_current_thread()),
        build(tokio::runtime::Builder::new_multi_thread()),
    ] {
        runtime.block_on(async {
            let locks = memory().await;
            let held = locks.lock("a").ttl(millis(1000)).acquire().await.unwrap();
            let waits = tokio::spawn(locks.lock("a").ttl(millis(1000)).acquire());
            tokio::time::sleep(millis(1500)).await;
            assert!(held.is_held() && !waits.is_finished());
            held.release().await.unwrap();
            waits.await.unwrap().unwrap().release().await.unwrap();
        });
    }
}

#[cfg(feature = "local")]
#[tokio::test]
async fn local_is_an_embedded_store_with_the_same_face() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("locks");
    let url = format!("local:{}?ttl=10s", path.to_str().unwrap());
    let (one, two) = (Locks::connect(&url).await.unwrap(), Locks::connect(&url).await.unwrap());
    let held = one.lock("a").stakes(ringfence::Stakes::Correctness).acquire().await.unwrap();
    assert_eq!(held.ttl().as_duration(), Duration::from_secs(10));
    assert!(two.lock("a").try_acquire().await.unwrap().is_none());
    held.release().await.unwrap();
    two.lock("a").acquire().await.unwrap().release().await.unwrap();
    one.close().await.unwrap();
    two.close().await.unwrap();
    assert!(Locks::connect("local://var/lib").await.unwrap_err().to_string().contains("takes no host"));
    assert!(Locks::connect("local:var/lib").await.unwrap_err().to_string().contains("absolute"));
}

#[cfg(feature = "local")]
#[tokio::test]
async fn the_fence_of_local_records_is_chosen_in_the_url() {
    let directory = tempfile::tempdir().unwrap();
    let url = |fence: &str| format!("local:{}/locks{fence}", directory.path().to_str().unwrap());
    for (fence, guard) in [
        ("", RecordGuard::LiveLease),
        ("?fence=lease", RecordGuard::LiveLease),
        ("?fence=mark", RecordGuard::HighWaterMark),
    ] {
        let locks = Locks::connect(&url(fence)).await.unwrap();
        assert_eq!(locks.guarantees().record_guard, guard, "{fence}");
        assert_eq!(locks.guarantees(), &guarantees_of(&url(fence)).unwrap());
        let again = Locks::connect(&locks.backend_url()).await.unwrap();
        assert_eq!(again.guarantees().record_guard, guard, "it says what it is: {}", locks.backend_url());
    }
    let error = Locks::connect(&url("?fence=mrak")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUrl);
    assert!(error.to_string().contains("did you mean \"mark\"?"), "{error}");
    assert!(guarantees_of("memory:?fence=mark").is_err());
}
