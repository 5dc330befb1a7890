//! What MPI has been asked for and has not done: small calls that own their buffers, and many transfers at once.

use super::world::{Step, Wait, World};
use ::mpi::request::{LocalScope, Request};
use ::mpi::topology::{Communicator as _, SimpleCommunicator};
use ::mpi::traits::{Destination as _, Source as _};
use ::mpi::{Rank, Tag};

/// Most bytes of one message: MPI counts in 32 bits with a sign.
pub(super) const PIECE: usize = 1 << 30;

/// Calls and messages whose buffers live as long as MPI may touch them.
pub(super) mod own {
    use ::mpi::request::{Request, StaticScope};

    type Open<T> = Request<'static, [T], StaticScope>;

    /// A small call that was begun.
    pub struct Begun<T: 'static> {
        request: Open<T>,
        sent: *mut [T],
        came: *mut [T],
    }

    impl<T: Clone + Default + 'static> Begun<T> {
        /// Begins a call that sends some words and gets so many.
        pub fn new(
            sent: &[T],
            comes: usize,
            begin: impl FnOnce(&'static [T], &'static mut [T]) -> Open<T>,
        ) -> Begun<T> {
            let sent: *mut [T] = Box::into_raw(sent.into());
            let came: *mut [T] = Box::into_raw(vec![T::default(); comes].into());
            // SAFETY: both were allocated above and are freed by `test` only, once MPI is done with them.
            let request = unsafe { begin(&*sent, &mut *came) };
            Begun { request, sent, came }
        }

        /// What came, or the call again where nothing has yet.
        pub fn test(self) -> Result<Vec<T>, Begun<T>> {
            let Begun { request, sent, came } = self;
            match request.test() {
                Ok(_) => {
                    // SAFETY: MPI is done with them, and nobody else has them.
                    let (sent, came) = unsafe { (Box::from_raw(sent), Box::from_raw(came)) };
                    drop(sent);
                    Ok(came.into_vec())
                }
                Err(request) => Err(Begun { request, sent, came }),
            }
        }
    }

    /// A message that may not have arrived.
    pub struct Sent {
        request: Open<u8>,
        bytes: *mut [u8],
    }

    // SAFETY: MPI lets any thread ask for any request, and nobody else has the bytes.
    unsafe impl Send for Sent {}

    impl Sent {
        /// Begins to send a copy of some bytes.
        pub fn new(bytes: &[u8], begin: impl FnOnce(&'static [u8]) -> Open<u8>) -> Sent {
            let bytes: *mut [u8] = Box::into_raw(bytes.into());
            // SAFETY: allocated above and freed by `test` only, once MPI is done with it.
            Sent { request: begin(unsafe { &*bytes }), bytes }
        }

        /// The message again, unless MPI is done with it.
        pub fn test(self) -> Result<(), Sent> {
            let Sent { request, bytes } = self;
            match request.test() {
                // SAFETY: MPI is done with it, and nobody else has it.
                Ok(_) => unsafe { drop(Box::from_raw(bytes)) },
                Err(request) => return Err(Sent { request, bytes }),
            }
            Ok(())
        }
    }
}

type Bytes<'a, 's> = Request<'a, [u8], &'s LocalScope<'a>>;

/// Transfers within a scope, which must be settled before its end.
pub(super) struct Transfers<'a, 's> {
    scope: &'s LocalScope<'a>,
    tag: Tag,
    open: Vec<Bytes<'a, 's>>,
    piece: usize,
}

impl<'a, 's> Transfers<'a, 's> {
    pub(super) fn new(scope: &'s LocalScope<'a>, tag: Tag, piece: usize) -> Transfers<'a, 's> {
        Transfers { scope, tag, open: Vec::new(), piece }
    }

    pub(super) fn send(&mut self, comm: &SimpleCommunicator, to: usize, data: &'a [u8]) {
        for piece in data.chunks(self.piece) {
            let process = comm.process_at_rank(to as Rank);
            self.open.push(process.immediate_send_with_tag(self.scope, piece, self.tag));
        }
    }

    pub(super) fn receive(&mut self, comm: &SimpleCommunicator, from: usize, data: &'a mut [u8]) {
        for piece in data.chunks_mut(self.piece) {
            let process = comm.process_at_rank(from as Rank);
            self.open.push(process.immediate_receive_into_with_tag(self.scope, piece, self.tag));
        }
    }

    pub(super) fn add(&mut self, request: Bytes<'a, 's>) {
        self.open.push(request);
    }

    /// Waits for all of them. There is no way back from a fault: the bytes are somebody else's, and MPI may still write to
    /// them. So it says why and ends all ranks.
    pub(super) fn settle(self, world: &World, members: &[usize], what: &str) {
        let mut open = self.open;
        let waited = world.wait(&Wait { what, members, of: members }, || {
            let before = open.len();
            let still: Vec<Bytes<'a, 's>> = open.drain(..).filter_map(|request| request.test().err()).collect();
            open = still;
            match open.len() {
                0 => Step::Done,
                n if n < before => Step::Moved,
                _ => Step::Still,
            }
        });
        if let Err(error) = waited {
            world.end(&error.to_string());
        }
    }
}
