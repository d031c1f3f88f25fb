//! The example, which checks itself.

#[path = "../examples/axum.rs"]
#[expect(unreachable_pub, reason = "an example is a program of its own")]
mod example;

#[test]
fn a_service_of_axum_refuses_the_late_request_of_a_client_of_reqwest() {
    // Built beside packages that speak TLS, reqwest asks for a provider of it, whatever the URL.
    let _ = rustls::crypto::ring::default_provider().install_default();
    example::main().unwrap();
}
