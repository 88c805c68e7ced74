//! Every bound in one place, each with its reason.

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

/// One read or write of a file link: what the kernel's FUSE client sends at most (256 pages of 4 KiB).
pub const FILE_IO_MAX: usize = 1 << 20;
/// What a FUSE request holds besides its data: in-header 40, the longest struct 88, two names of 255; the kernel asks
/// for a page, and a symlink's target may be one.
pub const FILE_ROOM: usize = 8 << 10;
/// A file frame: one read or write, and room for its headers.
pub const FILE_FRAME_MAX: usize = FILE_IO_MAX + FILE_ROOM;
/// PATH_MAX of linux/limits.h.
pub const PATH_MAX: usize = 4096;
/// NAME_MAX of linux/limits.h.
pub const NAME_MAX: usize = 255;
/// XATTR_SIZE_MAX and XATTR_LIST_MAX of linux/limits.h.
pub const XATTR_MAX: usize = 64 << 10;
/// Request threads of one file link, least and most: below two nobody answers a PING while a disk is slow; above 64
/// they only wait for each other. Each holds one frame: 64 MiB at most a link.
pub const FILE_THREADS: std::ops::RangeInclusive<usize> = 2..=64;
/// Request threads when nobody has said how many.
pub const FILE_THREADS_DEFAULT: usize = 16;
/// Threads that wait for a file lock, of one link; ENOLCK above. A waiter's stack is 64 KiB.
pub const LOCK_WAITS_MAX: usize = 512;
/// Locks' own open files, of one link: (inode, owner) pairs; ENOLCK above.
pub const LOCK_FILES_MAX: usize = 4096;
/// Inodes of one link that the near kernel may remember, about 250 bytes each: 1 GiB. ENOMEM above.
pub const NODES_MAX: usize = 4 << 20;
/// O_PATH fds kept for inodes that were used lately, of one link. With `OPEN_FILES_MAX` twice (the file and its inode)
/// and `LOCK_FILES_MAX` one link stays below the usual limit of 20,000.
pub const NODE_FDS_MAX: usize = 1024;
/// Open files and directories of one link; ENFILE above.
pub const OPEN_FILES_MAX: usize = 6 << 10;
/// Mounts crossed below one export, each with an fd.
pub const MOUNTS_CROSSED_MAX: usize = 256;
/// One COPY_FILE_RANGE: the caller can't be interrupted meanwhile, and a short count is allowed.
pub const COPY_RANGE_MAX: u64 = 64 << 20;
/// Host sockets that one mount gives a local listener; beyond it connect() says ECONNREFUSED.
pub const ALIASES_MAX: usize = 512;
/// A LOOKUP waits so long for its alias, then is answered without one: an umount may be what the bind waits for.
pub const ALIAS_DEADLINE_MS: u64 = 2_000;
/// How often aliases are asked whether their host socket is still there.
pub const ALIAS_SWEEP_MS: u64 = 3_000;
/// Dialling and the mount's handshake.
pub const MOUNT_DEADLINE_MS: u64 = 5_000;
/// Threads that read /dev/fuse: one copies from the kernel while another writes to the link.
pub const FUSE_READERS: usize = 3;
