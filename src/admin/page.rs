//! The status page: one file without outside resources, under a policy that lets nothing else run.

use std::hash::{BuildHasher, RandomState};

use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

const PAGE: &str = include_str!("status.html");

/// Stands in the page where the nonce belongs.
const PLACEHOLDER: &str = "{{nonce}}";

/// Serves the page. It holds no data; its script fetches `/api/status`.
pub(super) async fn show() -> Response {
    let nonce = nonce();
    let headers =
        [(CONTENT_TYPE, "text/html; charset=utf-8".to_owned()), (CONTENT_SECURITY_POLICY, policy(&nonce))];
    (headers, PAGE.replace(PLACEHOLDER, &nonce)).into_response()
}

/// Only the script and the style of this very response, and only this server to talk to. Trusted types turn any
/// attempt of the script to write HTML into an error: tags come from whoever can write keys.
fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'"
    )
}

/// 128 bits that nobody can foresee: the hasher's keys come from the operating system.
fn nonce() -> String {
    let random = || RandomState::new().hash_one(std::time::Instant::now());
    format!("{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_outside_and_writes_no_html() {
        assert_eq!(PAGE.matches(PLACEHOLDER).count(), 2, "one style, one script");
        for bad in [
            "http://",
            "https://",
            "src=",
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "eval(",
            " style=\"",
            "onclick",
        ] {
            assert!(!PAGE.contains(bad), "{bad}");
        }
    }

    #[test]
    fn nonces_differ() {
        assert_ne!(nonce(), nonce());
        assert_eq!(nonce().len(), 32);
    }
}
