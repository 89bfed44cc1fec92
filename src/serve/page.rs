//! The page at `/`: one file, no outside requests; and what every page is sent with.

use std::sync::LazyLock;

use axum::http::HeaderName;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::IntoResponse;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

/// Markup, style and script in one.
const PAGE: &str = include_str!("page.html");

/// That of the page.
static POLICY: LazyLock<String> = LazyLock::new(|| policy(PAGE));

/// Nothing but what is in a page, by its hash, and what its script, if it has one, asks of this server: markup that came in with a
/// passage runs nothing.
pub(super) fn policy(page: &str) -> String {
    let source = |tag: &str| {
        let inside = page.split_once(&format!("<{tag}>"))?.1.split_once(&format!("</{tag}>"))?.0;
        Some(format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(inside))))
    };
    let style = source("style").unwrap_or_else(|| "'none'".to_owned());
    let script = source("script").map(|hash| format!("script-src {hash}; connect-src 'self'; ")).unwrap_or_default();
    format!(
        "default-src 'none'; style-src {style}; {script}img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The headers of a page under this policy.
pub(super) fn headers(policy: &str) -> [(HeaderName, String); 4] {
    [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_SECURITY_POLICY, policy.to_owned()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (CACHE_CONTROL, "no-cache".to_owned()),
    ]
}

/// `GET /`.
pub async fn page() -> impl IntoResponse {
    (headers(&POLICY), PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_the_page_s_one_style_and_one_script_alone() {
        for tag in ["style", "script"] {
            assert_eq!((PAGE.matches(&format!("<{tag}")).count(), PAGE.matches(&format!("<{tag}>")).count()), (1, 1));
        }
        // Attributes have no hash: neither styles nor handlers in the markup.
        assert!(!PAGE.contains(" style=") && !PAGE.contains(" onclick="));
        assert!(!POLICY.contains("unsafe") && POLICY.matches("'sha256-").count() == 2);
        let empty = BASE64_STANDARD.encode(Sha256::digest(""));
        assert!(!POLICY.contains(&empty));
    }

    #[test]
    fn a_page_without_a_script_may_run_none() {
        let policy = policy("<style>p {}</style><p>x</p>");
        assert!(
            policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("script-src"),
            "{policy}"
        );
        assert!(super::policy("<p>x</p>").contains("style-src 'none'"));
    }
}
