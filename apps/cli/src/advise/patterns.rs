//! What the rules lead to: for each pattern what to paste, and what it leaves open.

/// The database that the work is in, in commands and programs that have no other backend.
pub(super) const DATABASE: &str = "postgres://app@db.example/app";

/// How the programs connect, which run as they stand. The backend's URL is printed in its place.
pub(super) const CONNECTS: &str = r#"connect("memory:")"#;

/// The library, with what the backend needs, and what its programs stand on.
const HALL: &str = "ringfence FEATURES";
const TOKIO: &str = "tokio --features macros,rt";
const SQLX: &str = "sqlx@0.9 --features postgres,runtime-tokio";

#[derive(Debug)]
pub(super) struct Pattern {
    /// As in the table of the rules.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// Whether there is a backend to choose.
    pub(super) has_backend: bool,
    /// A command line of this program, where `URL` stands for the backend's, and `STAKES` for the flag of a double run that costs more than work.
    pub(super) command: Option<&'static str>,
    /// A file that is an example of its crate, and compiled as such; those of `advice` and the outbox's are run by tests as well.
    pub(super) program: Option<&'static str>,
    /// The packages that the program needs, as `cargo add` takes them, where `FEATURES` stands for what the backend's URL needs.
    pub(super) packages: &'static [&'static str],
    pub(super) not_guaranteed: &'static [&'static str],
}

impl Pattern {
    pub(super) fn named(name: &str) -> &'static Self {
        let found = PATTERNS.iter().find(|pattern| pattern.name == name);
        found.unwrap_or_else(|| panic!("a test looks up {name:?}, to which a rule leads"))
    }
}

/// A program of the library's example `advice`.
macro_rules! program {
    ($name:literal) => {
        Some(include_str!(concat!("../../../../ringfence/examples/advice/", $name, ".rs")))
    };
}

pub(super) const PATTERNS: [Pattern; 15] = [
    Pattern {
        name: "no-lock",
        title: "let it run twice",
        has_backend: false,
        command: None,
        program: None,
        packages: &[],
        not_guaranteed: &[
            "Two runs with different input are not put in order: whichever writes last wins.",
            "It is idempotent only as long as everything that it calls is.",
        ],
    },
    Pattern {
        name: "conditional-update",
        title: "no lock, but a condition in the write itself",
        has_backend: false,
        command: None,
        program: Some(include_str!("../../../../backends/postgres/examples/conditional_update.rs")),
        packages: &[SQLX, TOKIO],
        not_guaranteed: &[
            "Whoever comes second has to read again and decide anew; in a crowd somebody may do so many times.",
            "Nothing that happens outside of the database is undone when the condition fails: write first, then act.",
            "An INSERT needs its own condition: a unique key, such as the id of the request.",
        ],
    },
    Pattern {
        name: "transaction-lock",
        title: "a lock that ends with your transaction",
        has_backend: false,
        command: None,
        program: Some(include_str!("../../../../backends/postgres/examples/transaction_lock.rs")),
        packages: &["ringfence --features postgres-sqlx", SQLX, TOKIO],
        not_guaranteed: &[
            "Nothing outside of the transaction is covered: what was sent before the commit is not called back.",
            "A transaction that hangs keeps everybody waiting: set idle_in_transaction_session_timeout and a lock_timeout.",
            "In REPEATABLE READ and SERIALIZABLE what is read after the lock may be older than the lock.",
        ],
    },
    Pattern {
        name: "outbox",
        title: "write the message with the rows, deliver it afterwards",
        has_backend: false,
        command: Some("ringfence outbox relay URL --to stdout"),
        program: Some(include_str!("../../../../ringfence/examples/outbox.rs")),
        packages: &["ringfence --features outbox", SQLX, "tokio --features io-std,macros,rt"],
        not_guaranteed: &[
            "A message is delivered at least once, not exactly once: the receiver drops an id that it has seen.",
            "Messages are in order for each key, not across keys.",
        ],
    },
    Pattern {
        name: "idempotency",
        title: "the first request runs, the others get its result",
        has_backend: true,
        command: Some("ringfence idempotent --url URL STAKES payment/42 -- ./charge"),
        program: program!("idempotency"),
        packages: &[HALL, TOKIO],
        not_guaranteed: &[
            "A holder that is paused past its lease may act beside its successor; only its result is refused. Give what it calls \
             the same key, or the token.",
            "After the retention the key is forgotten, and the request would run again.",
        ],
    },
    Pattern {
        name: "versioned",
        title: "no lock, but a write that names the version it replaces",
        has_backend: true,
        command: Some("ringfence record put --url URL settings --if-version 7"),
        program: program!("versioned"),
        packages: &[HALL, TOKIO],
        not_guaranteed: &[
            "Whoever comes second has to read again and decide anew; in a crowd somebody may do so many times.",
            "Nothing else is covered: what was done before the write stays done when the write is refused.",
        ],
    },
    Pattern {
        name: "once",
        title: "run once per window, and remember it",
        has_backend: true,
        command: Some("ringfence once --url URL STAKES --every 1d nightly -- ./report.sh"),
        program: program!("once"),
        packages: &[HALL, TOKIO],
        not_guaranteed: &[
            "A run that is paused past its lease may act beside the next one; only its outcome is refused. Give what it writes to \
             the token.",
            "A run that fails or crashes may have done a part of its work: say with --retry-failed whether it is done again.",
        ],
    },
    Pattern {
        name: "leader",
        title: "one leads, and the others know who",
        has_backend: true,
        command: Some("ringfence elect --url URL STAKES scheduler -- ./scheduler"),
        program: program!("leader"),
        packages: &[HALL, TOKIO],
        not_guaranteed: &[
            "A leader that is paused past its term does not know that it is over: what it writes to has to refuse its term.",
            "Between the death of a leader and the next one nobody leads, for as long as the TTL.",
        ],
    },
    Pattern {
        name: "partitions",
        title: "deal the parts, each to one owner",
        has_backend: true,
        command: Some("ringfence partitions --url URL STAKES --count 64 orders -- ./worker"),
        program: program!("partitions"),
        packages: &[HALL, TOKIO],
        not_guaranteed: &[
            "An owner that is paused past its lease may act beside its successor: what it writes to has to refuse its token.",
            "After a crash a part has no owner for up to the TTL and two seconds.",
            "Parts are dealt evenly by number, not by how much work is in them.",
        ],
    },
    Pattern {
        name: "permits",
        title: "up to so many at once",
        has_backend: true,
        command: Some("ringfence run --url URL --permits 4 gpu -- ./train.sh"),
        program: program!("permits"),
        packages: &[HALL, TOKIO],
        not_guaranteed: &[
            "One that is paused past its lease is one too many when it goes on; no fence can refuse it, because a higher token does \
             not make a lower one stale where several hold at once.",
            "It limits how many hold at once. For how many in a minute a permit is left to lapse.",
        ],
    },
    Pattern {
        name: "fenced-record",
        title: "a lock, and the value behind its fence",
        has_backend: true,
        command: Some("ringfence run --url URL STAKES counter -- ./update.sh"),
        program: program!("fenced_record"),
        packages: &[HALL, TOKIO],
        not_guaranteed: &[
            "Only what is in the record is behind the fence; whatever else is done under the lock may overlap.",
            "The record has at most 64 KiB.",
        ],
    },
    Pattern {
        name: "gate",
        title: "a lock, and a gate before the service that refuses stale tokens",
        has_backend: true,
        command: Some("ringfence gate --url URL --listen 127.0.0.1:8081 --upstream http://127.0.0.1:8080"),
        program: Some(include_str!("../../../../fences/http/examples/axum.rs")),
        packages: &[
            HALL,
            "ringfence-http",
            "axum@0.8",
            "reqwest@0.13",
            "tokio --features macros,net,rt-multi-thread,sync",
        ],
        not_guaranteed: &[
            "A request that is past the gate already can arrive after a later one; the gate waits for it only for so long.",
            "Whoever reaches the service without the gate is not fenced.",
        ],
    },
    Pattern {
        name: "object-fence",
        title: "a lock, and the token beside the object",
        has_backend: true,
        command: Some("ringfence run --url URL STAKES reports/today -- ./upload"),
        program: Some(include_str!("../../../../fences/object-store/examples/fenced_object.rs")),
        packages: &[HALL, "ringfence-object-store", "object_store@0.14", TOKIO],
        not_guaranteed: &[
            "Whoever writes the object without the fence is not refused.",
            "Each object has a mark of its own: two of them are not written in one step.",
        ],
    },
    Pattern {
        name: "lock-delay",
        title: "a lock, with a grace time after a holder that was lost",
        has_backend: true,
        command: Some("ringfence run --url URL STAKES --ttl 10s --lock-delay 30s device/7 -- ./move-arm"),
        program: program!("lock_delay"),
        packages: &[HALL, TOKIO],
        not_guaranteed: &[
            "Nothing refuses a holder that was paused for longer than its TTL and the delay: two act at once.",
            "Better than any of this is a resource that can refuse: an id that it remembers, a version, a token.",
        ],
    },
    Pattern {
        name: "lock",
        title: "a lock",
        has_backend: true,
        command: Some("ringfence run --url URL STAKES report -- ./report.sh"),
        program: program!("lock"),
        packages: &[HALL, TOKIO],
        not_guaranteed: &[
            "A holder that is paused past its lease goes on beside the next one when it wakes up.",
            "If that became more than wasted work, the resource would have to check the token.",
        ],
    },
];
