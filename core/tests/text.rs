//! What people type: names, tokens, durations. Nothing panics, nothing is clamped, what is accepted prints as it was.

use std::time::Duration;

use proptest::prelude::*;
use ringfence_core::{
    BackendUrl, BootInstant, ErrorKind, FencingToken, LockName, Mode, NAME_MAX, Nonce, Ttl,
};

proptest! {
    #[test]
    fn a_name_is_any_text_without_control_characters(text in any::<String>()) {
        let fine = (1..=NAME_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        match LockName::new(&text) {
            Ok(name) => {
                prop_assert!(fine);
                prop_assert_eq!(name.as_str(), text);
            }
            Err(error) => {
                prop_assert!(!fine);
                prop_assert_eq!(error.kind(), ErrorKind::InvalidName);
            }
        }
    }

    #[test]
    fn a_token_reads_as_it_was_written(sequence in 0..1_u64 << 63, nonce in 1_u64..) {
        let token = FencingToken::new(sequence, Nonce::from_u64(nonce).unwrap()).unwrap();
        prop_assert_eq!(token.to_string().parse::<FencingToken>().unwrap(), token);
        let json = serde_json::to_string(&token).unwrap();
        prop_assert_eq!(&json, &format!("\"{token}\""));
        prop_assert_eq!(serde_json::from_str::<FencingToken>(&json).unwrap(), token);
    }

    #[test]
    fn what_reads_as_a_token_prints_the_same(text in "[0-9a-fA-F.+-]{0,40}") {
        if let Ok(token) = text.parse::<FencingToken>() {
            prop_assert_eq!(token.to_string(), text);
        }
    }

    #[test]
    fn hand_overs_rise_within_their_grant(number in 0..1_u64 << 55, nonce in 1_u64..) {
        let nonce = Nonce::from_u64(nonce).unwrap();
        let mut token = FencingToken::of_grant(number, nonce).unwrap();
        let mut count = 0;
        while let Some(next) = token.handed_over() {
            prop_assert!(next.sequence() > token.sequence());
            prop_assert_eq!(next.grant(), number);
            token = next;
            count += 1;
        }
        prop_assert_eq!(count, 255);
        if let Ok(next) = FencingToken::of_grant(number + 1, nonce) {
            prop_assert!(next.sequence() > token.sequence());
        }
    }

    #[test]
    fn a_ttl_is_in_its_range_or_an_error(nanos: u64, seconds: u64) {
        for duration in [Duration::from_nanos(nanos), Duration::from_secs(seconds), Duration::from_millis(nanos)] {
            match Ttl::new(duration) {
                Ok(ttl) => {
                    prop_assert!(ttl >= Ttl::MIN && ttl <= Ttl::MAX);
                    prop_assert!(ttl.as_duration() >= duration);
                    prop_assert!(ttl.as_duration() < duration + Duration::from_millis(1));
                }
                Err(error) => {
                    prop_assert_eq!(error.kind(), ErrorKind::InvalidTtl);
                    prop_assert!(duration <= Ttl::MIN.as_duration() || duration > Ttl::MAX.as_duration());
                }
            }
        }
    }

    #[test]
    fn instants_never_overflow(a: u64, b: u64) {
        let (a, b) = (BootInstant::from_nanos(a), BootInstant::from_nanos(b));
        prop_assert_eq!(a.saturating_add(b.saturating_since(a)), a.max(b));
        prop_assert!(a.saturating_add(Duration::MAX) == BootInstant::MAX);
    }

    #[test]
    fn urls_never_panic_and_never_print_a_password(text in any::<String>(), password in "[a-z]{12}") {
        let _ = BackendUrl::parse(&text);
        let url = BackendUrl::parse(&format!("redis://user:{password}@host:1/path?key=value")).unwrap();
        prop_assert_eq!(url.password(), Some(password.as_str()));
        prop_assert!(!url.to_string().contains(&password), "{}", url);
    }
}

#[test]
fn what_is_no_token_is_refused() {
    for text in [
        "",
        ".",
        "1",
        "1.",
        ".1",
        "01.1",
        "1.01",
        "+1.1",
        "-1.1",
        "1.+1",
        " 1.1",
        "1.1 ",
        "1.0",
        "1.g",
        "1.A",
        "0x1.1",
        "1e3.1",
        "18446744073709551616.1",
        "9223372036854775808.1",
        "1.10000000000000000",
        "1.1.1",
        "١.1",
    ] {
        let error = text.parse::<FencingToken>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidToken, "{text}");
    }
}

#[test]
fn permits_have_a_range() {
    for limit in [0, 65_537, u32::MAX] {
        assert_eq!(Mode::permit(limit).unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
    Mode::permit(1).unwrap();
    Mode::permit(65_536).unwrap();
}
