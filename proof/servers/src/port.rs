use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the ports that the kernel gives to outgoing connections, which begin at 32768, even where a Redis Cluster adds
/// [`BUS`] to them; and above the usual port of every server that our tests start.
const FIRST: u16 = 11_000;
const COUNT: u16 = 10_000;

/// What a node of a Redis Cluster adds to its port, for its other port.
pub(crate) const BUS: u16 = 10_000;

/// A TCP port of 127.0.0.1 that no other fixture has, in this process or in another one, until this is dropped.
///
/// So a server can be killed and come back on its port: nobody takes it in between.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    /// A name that one socket at a time can have, on which nobody listens. The kernel takes it back when we die.
    _claim: UnixListener,
}

impl Port {
    /// One on which nothing listens.
    ///
    /// Panics when there is none.
    pub(crate) fn claim() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Test processes, which follow each other, begin at different places.
        let begin = std::process::id().wrapping_mul(97);
        for _ in 0..COUNT {
            let place = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % u32::from(COUNT);
            let number = FIRST + u16::try_from(place).expect("the remainder is less than COUNT");
            if let Some(port) = Self::claim_number(number) {
                return port;
            }
        }
        panic!("no port from {FIRST} to {} is free", FIRST + COUNT - 1);
    }

    fn claim_number(number: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("ringfence-port-{number}"));
        let claim = UnixListener::bind_addr(&name.expect("the name is short")).ok()?;
        // Somebody who knows nothing of our claims may be there.
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        (is_free(number) && is_free(number + BUS)).then_some(Self { number, _claim: claim })
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_claimed_until_it_is_dropped() {
        let port = Port::claim();
        let number = port.number();
        assert!(Port::claim_number(number).is_none(), "{number} is claimed");
        drop(port);
        assert!(Port::claim_number(number).is_some(), "{number} is nobody's any more");
    }

    #[test]
    fn a_port_on_which_somebody_listens_is_not_taken() {
        let port = Port::claim();
        let number = port.number();
        for taken in [number, number + BUS] {
            let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, taken)).unwrap();
            // The claim is dropped only now, so that no other test takes the port.
            let free = Port::claim();
            assert_ne!(free.number(), number);
            drop(stranger);
        }
        let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, number + BUS)).unwrap();
        drop(port);
        assert!(Port::claim_number(number).is_none(), "{stranger:?} is in the way");
    }
}
