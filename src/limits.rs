//! Every bound in one place, each with its reason.

use std::time::Duration;

/// Frames on a LAT link: small, so that a control frame never waits long behind one (16 KiB is 0.13 ms at 1 Gbit/s).
pub const LAT_FRAME_MAX: u32 = 16 << 10;
/// Frames on a BULK link: large enough to make the 16-byte header vanish, small enough to share a link fairly.
pub const BULK_FRAME_MAX: u32 = 64 << 10;
/// The first window of a stream: one default socket buffer's worth of small requests without a CREDIT round trip.
pub const INITIAL_WINDOW: u32 = 64 << 10;
/// The window when a direction has moved to the BULK link.
pub const BULK_WINDOW: u32 = 256 << 10;
/// Where window growth ends: 8 MiB fills 1 Gbit/s at 64 ms.
pub const WINDOW_MAX: u32 = 8 << 20;
/// What all windows of one session may have grown by, together: the memory a session may pin beyond the first windows.
pub const SESSION_GROWTH_MAX: u64 = 64 << 20;
/// The largest record of a SEQPACKET or DGRAM stream (EMSGSIZE above); Linux passes about 200 KB by default.
pub const RECORD_MAX: u32 = 1 << 20;
/// Charged against the window for each record, so that empty records are bounded too.
pub const RECORD_COST: u32 = 64;
/// Charged against the window for each fd recipe.
pub const RECIPE_COST: u32 = 256;
/// fds in one SCM_RIGHTS message: SCM_MAX_FD, include/net/scm.h.
pub const FDS_MAX: usize = 253;
/// A direction moves to BULK after so many bytes without a pause.
pub const MOVE_AFTER_BYTES: u64 = 256 << 10;
/// What counts as a pause in the rule above.
pub const MOVE_PAUSE_MS: u64 = 50;
/// Streams of one session's link pair: the fd limit of a usual service (20,000) less room for everything else.
pub const STREAMS_MAX: usize = 16_384;
/// The payload of an OPEN frame: a path (4096) twice and some identity; larger requests are bytes of the stream.
pub const OPEN_MAX: u32 = 16 << 10;
/// The recipes of one message, all RECIPE frames together: 253 paths of 4 KiB, and room for each one's fixed part.
pub const RECIPES_MAX: usize = FDS_MAX * (4096 + 128);

/// A HELLO with its header: fixed fields, a name and a reason. Nothing longer is read before the peer is known.
pub const HELLO_MAX: usize = 512;
/// A connection that has not said a whole HELLO by then is closed.
pub const HELLO_DEADLINE_MS: u64 = 5_000;
/// Handshakes under way at once; the oldest makes room for a new one.
pub const HELLO_PENDING_MAX: usize = 256;

/// Silence after which a link is asked whether it lives.
pub const PING_AFTER_MS: u64 = 2_000;
/// Silence after which it is dead: three pings unanswered.
pub const DEAD_AFTER_MS: u64 = 7_000;
/// Sent bytes unacknowledged for so long end the connection: TCP_USER_TIMEOUT, tcp(7).
pub const TCP_USER_TIMEOUT_MS: u32 = 10_000;
/// How much may wait unsent in the LAT socket, so that a small frame overtakes what is queued: tcp(7).
pub const LAT_NOTSENT_LOWAT: u32 = 16 << 10;
/// First pause between two attempts to reach the peer.
pub const REDIAL_FIRST_MS: u64 = 100;
/// Longest pause between two attempts to reach the peer.
pub const REDIAL_MAX_MS: u64 = 3_000;
/// SIGTERM: streams may finish within this time.
pub const DRAIN_MS: u64 = 5_000;

/// What must stay free beside a new rootfs: libvirtd's logs and caches, and what apt needs to put one package right.
pub const ROOTFS_SPARE_BYTES: u64 = 64 << 20;

/// libvirtd's first start runs each emulator of the host twice over, about a second each in software emulation.
pub const OFFLOAD_READY: Duration = Duration::from_secs(60);
/// How long a daemon of the offload may take to end before SIGKILL: libvirtd closes its clients, then its drivers.
pub const OFFLOAD_STOP: Duration = Duration::from_secs(15);
/// How often a state of the offload is looked at while it is awaited.
pub const OFFLOAD_POLL: Duration = Duration::from_millis(50);
/// A command inside the offload, such as one of virsh, that has no answer by then has none.
pub const OFFLOAD_ASK: Duration = Duration::from_secs(20);
/// What is shown of a log when a daemon does not come up.
pub const LOG_TAIL_LINES: usize = 12;
