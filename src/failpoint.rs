//! Places at which a process can be made to die at once, for tests of what a crash leaves behind. In release builds there
//! are none.

use std::time::Duration;

/// Dies here if the environment variable `RESCIND_DIE_AT` names this place.
#[inline]
pub fn pass(place: &str) {
    pass_after(place, Duration::ZERO);
}

/// As [`pass`], when this thread has stood still for so long and the others have gone on.
#[inline]
pub fn pass_after(place: &str, time: Duration) {
    #[cfg(debug_assertions)]
    {
        static WANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        if WANTED.get_or_init(|| std::env::var("RESCIND_DIE_AT").ok()).as_deref() == Some(place) {
            std::thread::sleep(time);
            std::process::abort();
        }
    }
    let _ = (place, time);
}
