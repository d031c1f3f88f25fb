//! The patterns of the hall, held to what their documentation says: cases that run against every backend.
//!
//! Each case is an async function of the module of its pattern, whose name begins with the pattern's. A backend names all of them
//! once, beside its conformance suite and by the same [`Harness`](ringfence_testkit::Harness):
//!
//! ```ignore
//! ringfence_patterns::patterns!(Some(Memory::new()));
//! ```
//!
//! A holder that hangs past its lease is one whose hall does not renew ([`max_hold`](ringfence::LockRequest::max_hold)), so that
//! these faults need nothing that a backend's harness would have to bring.

mod stage;

/// Expands to one `#[test]` for each case, named after it. The expression makes the harness, as for
/// [`conformance!`](ringfence_testkit::conformance).
#[macro_export]
macro_rules! patterns {
    ($harness:expr $(,)?) => {
        $crate::__tests! { ($harness)
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    (($harness:expr) $($pattern:ident::$case:ident)*) => {
        $(
            #[test]
            fn $case() {
                ::ringfence_testkit::run(stringify!($case), async { $harness }, |harness| {
                    ::std::boxed::Box::pin($crate::$pattern::$case(harness))
                });
            }
        )*
    };
}
