//! Steps of libraries that panic on some bytes where they should give an error: here such a panic is a damaged file.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Do a step on somebody's bytes; `None` when it panicked. What it worked on must not be used after that.
pub(crate) fn guarded<T>(step: impl FnOnce() -> T) -> Option<T> {
    let outer = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(step)).ok();
    GUARDED.set(outer);
    done
}

/// From here on nothing is printed about a panic of a guarded step: the error that comes of it says it in the user's words.
pub(crate) fn print_no_guarded_panics() {
    let usual = take_hook();
    set_hook(Box::new(move |panic| {
        if !GUARDED.get() {
            usual(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_none_and_guards_nest() {
        assert_eq!(guarded(|| 7), Some(7));
        assert_eq!(guarded(|| guarded(|| panic!("inner")).map_or(1, |()| 2)), Some(1));
        assert_eq!(guarded(|| -> u32 { panic!("outer") }), None);
        assert!(!GUARDED.get());
    }
}
