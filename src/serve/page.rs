//! The page at `/`: one file, no outside requests.

use std::sync::LazyLock;

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::IntoResponse;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

/// Markup, style and script in one.
const PAGE: &str = include_str!("page.html");

/// Nothing but what is in the page, by its hash, and what it asks of this server: markup that came in with a passage runs nothing.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag: &str| {
        let inside = PAGE.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
        BASE64_STANDARD.encode(Sha256::digest(inside.map_or("", |(inside, _)| inside)))
    };
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("style"),
        hash("script")
    )
});

/// `GET /`.
pub async fn page() -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE)
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
}
