//! Windows of zstd: which ones the decoder of a layer may have, and whose turn it is.
//!
//! ```text
//!   window of a frame -> within the ceiling? -> larger than what is common? -> wait for room
//! ```
//! Invariant: of decoders with a common window there are not too many, and with a large one there is
//! one in the process for all that is in the store ([`compression::Turns::stored`]).

use compression::{COMMON_WINDOW, Turn, within};
use tokio::runtime::Handle;
use types::{Error, Result};

use crate::work::{Rooms, Stop, Window};

/// Windows that need no turn: there are buffers that are larger.
const SMALL: u64 = 1 << 20;

/// What windows a stream may have.
#[derive(Debug)]
pub(crate) struct Windows {
    /// The largest one.
    pub(crate) most: u64,
    pub(crate) large: Large,
}

/// Who may have one larger than [`SMALL`], and than [`COMMON_WINDOW`].
#[derive(Debug)]
pub(crate) enum Large {
    /// Everybody: there is but one stream.
    Free,
    /// Those who are not too many, and one of the large ones after another.
    InTurn {
        rooms: Rooms,
        handle: Handle,
        stop: Stop,
    },
    /// The same of common ones, from the first frame on where there is a turn then, and nobody a large
    /// one: the stream waits for the net, and would keep others waiting.
    Coming(Rooms),
}

impl Windows {
    /// Lets one window after another pass, or does not. The turn goes with it.
    pub(crate) fn admission(self) -> impl FnMut(u64) -> Result<()> {
        let mut turn = None;
        move |window| self.admit(window, &mut turn)
    }

    /// Lets a window pass. A large one gets its turn, which is held as long as there is a decoder: that
    /// keeps what it has for the frames that follow.
    fn admit(&self, window: u64, turn: &mut Option<Held>) -> Result<()> {
        within(window, self.most)?;
        if let (Large::Coming(rooms), None) = (&self.large, &turn) {
            // Already for a small one: a larger one may follow, and what had come by then would be unpacked
            // in vain.
            *turn = rooms.window_of_coming().map(|room| (Window::Common, room));
        }
        if window <= SMALL {
            return Ok(());
        }
        let size = if window <= COMMON_WINDOW {
            Window::Common
        } else {
            Window::Large
        };
        if turn
            .as_ref()
            .is_some_and(|(held, _)| *held == Window::Large || *held == size)
        {
            return Ok(());
        }
        let room = match &self.large {
            Large::Free => return Ok(()),
            Large::InTurn {
                rooms,
                handle,
                stop,
            } => {
                // Who waits for a large one keeps nobody from a common one.
                *turn = None;
                handle.block_on(rooms.window(size, stop))?
            }
            Large::Coming(_) => {
                return Err(Error::unavailable(format_args!(
                    "zstd window of {window} bytes, no room for it while the layer comes in"
                )));
            }
        };
        *turn = Some((size, room));
        Ok(())
    }
}

/// The turn of a decoder.
type Held = (Window, Turn);

#[cfg(test)]
mod tests {
    use types::Code;

    use super::*;
    use crate::compression::{decode_error, decoder};

    const MOST: u64 = 64 << 20;

    fn read(frames: &[u8], large: Large) -> Result<Vec<u8>> {
        let windows = Windows { most: MOST, large };
        let mut out = Vec::new();
        decoder(frames, windows)
            .and_then(|mut stream| stream.read_to_end(&mut out))
            .map_err(decode_error)?;
        Ok(out)
    }

    /// An empty frame with a window of two to the power of `log`.
    fn windowed(log: u8) -> Vec<u8> {
        vec![0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 1, 0, 0]
    }

    #[test]
    fn a_damaged_stream_and_a_window_beyond_the_ceiling_are_told_apart() {
        let good = [windowed(26), windowed(20)].concat();
        assert_eq!(read(&good, Large::Free).unwrap(), b"");
        let cut = read(&good[..good.len() - 1], Large::Free).unwrap_err();
        assert!(cut.is(Code::InvalidArgument), "{cut}");
        let trailing = read(&[&good[..], b"no frame"].concat(), Large::Free).unwrap_err();
        assert!(trailing.is(Code::InvalidArgument), "{trailing}");
        let greedy = read(&[good, windowed(27)].concat(), Large::Free).unwrap_err();
        assert!(greedy.is(Code::ResourceExhausted), "{greedy}");
    }

    #[test]
    fn the_usual_ceiling_takes_what_zstd_writes_at_its_highest_level() {
        let usual = Windows {
            most: crate::Limits::default().window,
            large: Large::Free,
        };
        usual.admit(128 << 20, &mut None).unwrap();
        let error = usual.admit((128 << 20) + 1, &mut None).unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
    }

    #[test]
    fn a_layer_that_comes_in_has_its_turn_from_its_first_frame_on() {
        let rooms = Rooms::default();
        let windows = Windows {
            most: MOST,
            large: Large::Coming(rooms.clone()),
        };
        let mut turn = None;
        windows.admit(1, &mut turn).unwrap();
        let others: Vec<_> = std::iter::from_fn(|| rooms.window_of_coming()).collect();
        windows.admit(COMMON_WINDOW, &mut turn).unwrap();
        // One for which there was none goes on as long as it needs none, and gets what becomes free.
        let mut late = None;
        windows.admit(SMALL, &mut late).unwrap();
        assert!(windows.admit(COMMON_WINDOW, &mut late).is_err());
        drop((others, turn));
        windows.admit(COMMON_WINDOW, &mut late).unwrap();
    }

    #[test]
    fn who_waits_for_a_large_window_has_given_its_common_one_back() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let (rooms, stop) = (Rooms::default(), Stop::default());
        let windows = Windows {
            most: MOST,
            large: Large::InTurn {
                rooms,
                handle: runtime.handle().clone(),
                stop: stop.clone(),
            },
        };
        let mut turn = None;
        windows.admit(COMMON_WINDOW, &mut turn).unwrap();
        assert!(turn.is_some());
        // Waits no longer than it takes to give up.
        stop.tell();
        let error = windows.admit(COMMON_WINDOW + 1, &mut turn).unwrap_err();
        assert!(error.is(Code::Cancelled), "{error}");
        assert!(turn.is_none());
    }

    #[test]
    fn large_windows_are_taken_in_turn_and_not_while_a_layer_comes_in() {
        let rooms = Rooms::default();
        let coming = || Large::Coming(rooms.clone());
        let error = read(&windowed(24), coming()).unwrap_err();
        assert!(error.is(Code::Unavailable), "{error}");
        read(&windowed(23), coming()).unwrap();
        let mut all = Vec::new();
        while let Some(turn) = rooms.window_of_coming() {
            all.push(turn);
        }
        let error = read(&windowed(23), coming()).unwrap_err();
        assert!(error.is(Code::Unavailable), "{error}");
        read(&windowed(20), coming()).unwrap();

        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        let stop = Stop::default();
        let in_turn = |stop: &Stop| Large::InTurn {
            rooms: rooms.clone(),
            handle: runtime.handle().clone(),
            stop: stop.clone(),
        };
        for _ in 0..2 {
            read(&windowed(24).repeat(2), in_turn(&stop)).unwrap();
        }
        // Anybody's in this process.
        let turn = compression::Turns::stored().wait(&|| false).unwrap();
        // Those with a common one do not wait; the others do, until they are told that it is in vain.
        read(&windowed(23), in_turn(&stop)).unwrap();
        let waiting = in_turn(&stop);
        let waiter = std::thread::spawn(move || read(&windowed(24), waiting));
        stop.tell();
        let error = waiter.join().unwrap().unwrap_err();
        assert!(error.is(Code::Cancelled), "{error}");
        drop(turn);
        read(&windowed(24), in_turn(&Stop::default())).unwrap();
    }
}
