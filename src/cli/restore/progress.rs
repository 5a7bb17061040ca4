//! What one sees of a restore that takes a while: a bar on a terminal, else a line every few seconds.

use std::io::IsTerminal;
use std::pin::pin;
use std::time::Duration;

use tracing::info;

use crate::cli::output::print_err;
use crate::restore::Progress;
use crate::sys::Clock;

/// Between two pictures of the bar.
const BAR_PAUSE: Duration = Duration::from_millis(200);
/// Between two log lines.
const LINE_PAUSE: Duration = Duration::from_secs(5);
/// Characters of the bar.
const WIDTH: u64 = 30;

/// Runs `work`, and shows how it goes on. Short ones show nothing.
pub(super) async fn shown<T>(work: impl Future<Output = T>, progress: &Progress, clock: &dyn Clock) -> T {
    let terminal = std::io::stderr().is_terminal();
    let pause = if terminal { BAR_PAUSE } else { LINE_PAUSE };
    let began = clock.elapsed();
    let mut work = pin!(work);
    let mut drawn = false;
    loop {
        tokio::select! {
            biased;
            done = &mut work => {
                if drawn {
                    print_err("\r\x1b[K");
                }
                return done;
            }
            () = tokio::time::sleep(pause) => {}
        }
        let (done, total) = (progress.done(), progress.total());
        if total == 0 {
            continue;
        }
        let state = State { done, resumed: progress.resumed(), total, elapsed: clock.elapsed().saturating_sub(began) };
        if terminal {
            drawn = true;
            print_err(&format!("\r\x1b[K{}", state.bar()));
        } else {
            let left = state.left().map_or_else(String::new, |left| format!("{}s", left.as_secs()));
            info!(bytes = done, total, percent = state.percent(), per_second = state.rate(), left, "restoring");
        }
    }
}

struct State {
    done: u64,
    /// Of these, read by an earlier restore.
    resumed: u64,
    total: u64,
    elapsed: Duration,
}

impl State {
    fn percent(&self) -> u64 {
        (u128::from(self.done.min(self.total)) * 100 / u128::from(self.total.max(1))) as u64
    }

    /// Bytes per second.
    fn rate(&self) -> u64 {
        let millis = self.elapsed.as_millis().max(1);
        let read = self.done.saturating_sub(self.resumed);
        u64::try_from(u128::from(read) * 1000 / millis).unwrap_or(u64::MAX)
    }

    fn left(&self) -> Option<Duration> {
        let seconds = self.total.saturating_sub(self.done).checked_div(self.rate())?;
        Some(Duration::from_secs(seconds))
    }

    fn bar(&self) -> String {
        let full = self.percent() * WIDTH / 100;
        let bar: String = (0..WIDTH).map(|at| if at < full { '#' } else { '.' }).collect();
        let left = self.left().map_or_else(String::new, |left| format!(", {} s left", left.as_secs()));
        let (done, total, rate) = (megabytes(self.done), megabytes(self.total), megabytes(self.rate()));
        format!("{:3}% [{bar}] {done} of {total} MB, {rate} MB/s{left}", self.percent())
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{}", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_tells_bytes_rate_and_time_left() {
        let state = State { done: 301_000_000, resumed: 0, total: 718_000_000, elapsed: Duration::from_secs(2) };
        let bar = state.bar();
        assert_eq!(bar, " 41% [############..................] 301.0 of 718.0 MB, 150.5 MB/s, 2 s left");
        let resumed =
            State { done: 601_000_000, resumed: 300_000_000, total: 718_000_000, elapsed: Duration::from_secs(2) };
        assert!(resumed.bar().ends_with("601.0 of 718.0 MB, 150.5 MB/s, 0 s left"), "{}", resumed.bar());
        let none = State { done: 0, resumed: 0, total: 1, elapsed: Duration::ZERO };
        assert_eq!(none.bar(), "  0% [..............................] 0.0 of 0.0 MB, 0.0 MB/s");
        let more = State { done: 9, resumed: 0, total: 3, elapsed: Duration::from_millis(1) };
        assert!(more.bar().starts_with("100% [##############################]"));
    }
}
