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
/// Record streams get this window: credit comes back when half of it is used, and the sender then needs room for a whole
/// record still.
#[expect(clippy::cast_possible_truncation, reason = "253 fds")]
pub const RECORD_WINDOW: u32 = 2 * (RECORD_MAX + RECORD_COST + FDS_MAX as u32 * RECIPE_COST);
/// Fragments of a record that are kept as they came: RECORD_MAX in LAT frames is 64, each perhaps cut by a read.
pub const FRAGMENTS_MAX: usize = 128;
/// Replay buffers per session: frames that were sent and are not acknowledged. BULK holds 10 ms of a 25 Gbit/s link.
pub const REPLAY_LAT: u64 = 4 << 20;
pub const REPLAY_BULK: u64 = 32 << 20;
/// Bytes between two ACKs: enough that ACKs cost little, and few enough that buffers are reused while they are in the
/// processor's cache.
pub const ACK_EVERY: u64 = 256 << 10;
/// Pauses between attempts to replace a lost link.
pub const RESUME_FIRST_MS: u64 = 10;
pub const RESUME_MAX_MS: u64 = 500;
/// Delay before the node that did not dial the session also tries.
pub const RESUME_OTHER_MS: u64 = 1_000;
/// A peer that refuses connections for this long has ended. Shorter refusals may be a daemon's restart.
pub const NOBODY_MS: u64 = 1_000;
/// Pieces behind a slow reader are copied together up to this size: below it a piece costs as much as its bytes.
pub const MERGE_MAX: usize = 512;
/// Reads of a stream socket that are preceded by a look for passed fds, in half a second: all of one that speaks now and
/// then, a few in a hundred of one that is busy.
pub const PEEKS_A_TICK: u32 = 64;
/// Charged against the window for each record, so that empty records are bounded too.
pub const RECORD_COST: u32 = 64;
/// Charged against the window for each fd recipe.
pub const RECIPE_COST: u32 = 256;
/// A memfd that crosses is copied, and its copy is the receiver's memory: keymaps and small images, not a guest's RAM.
pub const MEMFD_MAX: u64 = 16 << 20;
/// fds in one SCM_RIGHTS message: SCM_MAX_FD, include/net/scm.h.
pub const FDS_MAX: usize = 253;
/// A security label that comes with a message (SO_PASSSEC): Smack's longest, and several times a usual SELinux context.
/// A longer one is lost control data, and so ends its stream.
pub const SECURITY_LABEL_MAX: usize = 256;
/// Why an fd was refused, for a log line: a path and what would allow it.
pub const REFUSAL_MAX: usize = 1 << 10;
/// Lines about refused fds, of one link pair in half a second: hot-plugging one device of a virtual machine makes a few.
pub const NOTICES_A_TICK: u32 = 8;
/// A direction moves to BULK after so many bytes without a pause.
pub const MOVE_AFTER_BYTES: u64 = 256 << 10;
/// What counts as a pause in the rule above.
pub const MOVE_PAUSE_MS: u64 = 50;
/// Streams of one session's link pair: the fd limit of a usual service (20,000) less room for everything else.
pub const STREAMS_MAX: usize = 16_384;
/// Local ends of one link pair: as many streams, and as many again that have ended and still hold bytes for a program.
pub const PORTS_MAX: usize = 2 * STREAMS_MAX;
/// Streams of one link pair with a RECORD_WINDOW. That is far more than they may hold: see RECORDS_HELD_MAX.
pub const RECORD_STREAMS_MAX: usize = 1024;
/// What the record streams of one link pair hold here for programs that have not read it yet, charges included: as much
/// again as other windows may have grown by. 1,024 streams of small records are far below, and so are 30 programs that
/// stop reading in the middle of the largest; above it the stream that holds most ends.
pub const RECORDS_HELD_MAX: u64 = SESSION_GROWTH_MAX;
/// The payload of an OPEN frame: a path (4096) twice and some identity; larger requests are bytes of the stream.
pub const OPEN_MAX: u32 = 16 << 10;
/// What a service says with its yes: a few numbers.
pub const ACCEPT_MAX: u32 = 64;
/// The recipes of one message, all RECIPE frames together: 253 paths of 4 KiB, and room for each one's fixed part.
pub const RECIPES_MAX: usize = FDS_MAX * RECIPE_MAX;
/// One recipe: a path of PATH_MAX, and room for its fixed part.
pub const RECIPE_MAX: usize = 4096 + 128;

/// A HELLO with its header: fixed fields, a name and a reason, and a voucher with CALLER_GROUPS_MAX groups (8.4 KiB).
/// Nothing longer is read before the peer is known.
pub const HELLO_MAX: usize = 9 << 10;
/// What a connection may send before both keys are proven, in all: a ClientHello with a post-quantum key share is 1.5 KiB,
/// certificate, signature and Finished another 0.3.
pub const HANDSHAKE_MAX: usize = 16 << 10;
/// Plaintext of one TLS record: with its head, content type and tag 16 KiB, so that a link's buffer ends with a record.
pub const RECORD_PLAIN_MAX: usize = (16 << 10) - 22;
/// A new key after so many records of one direction: half of what AES-GCM bears (2^24, RFC 8446, 5.5), 128 GiB of bulk.
/// This library's own tests renew all the time.
pub const KEY_UPDATE_RECORDS: u64 = if cfg!(test) { 50 } else { 1 << 23 };
/// A connection that has not said a whole HELLO by then is closed.
pub const HELLO_DEADLINE_MS: u64 = 5_000;
/// Handshakes under way at once, one fd and at most HANDSHAKE_MAX bytes each: 4 MiB. Another one makes room for a new one.
pub const HELLO_PENDING_MAX: usize = 256;

/// Failed handshakes of one address that are each said in the log; then one line now and then says how many there were, and
/// the address is heard after all others.
pub const FAILED_BURST: u64 = 10;
/// How often such an address is said again.
pub const FAILED_SAID_EVERY_S: u64 = 60;
/// After so long without a failure an address is as any other.
pub const FAILED_FORGET_S: u64 = 600;
/// Addresses whose failures are counted, 64 bytes each; above it the counting begins anew.
pub const FAILED_ADDRESSES_MAX: usize = 4096;

/// Lines that one source may say at one place of the log in LOG_WINDOW: what a person reads, and more than a start or a
/// mistake in a set-up makes. So a source makes a line a second at each place, and one that counts the others.
pub const LOG_BURST: u32 = 10;
pub const LOG_WINDOW: Duration = Duration::from_secs(10);
/// Sources whose lines are counted, about 150 bytes each; more of them share one measure. So many lines a second is the
/// most that who has many addresses or users can make.
pub const LOG_SOURCES_MAX: usize = 256;
/// A condition that has not been met for so long is over: a listener without fds accepts one client now and then.
pub const CONDITION_OVER: Duration = Duration::from_secs(5);
/// Lines that wait for the audit log's thread: two seconds of 2,000 connects each, for a disk that is slow.
pub const AUDIT_QUEUE_MAX: usize = 4096;
/// One of them: a name of PATH_MAX escaped would be longer, and is cut. All of the queue is 8 MiB.
pub const AUDIT_LINE_MAX: usize = 2048;

/// How often a daemon looks whether the files with keys and peers have changed: a stat of each, on a thread of its own.
pub const TRUST_LOOK: Duration = Duration::from_millis(200);
/// Between two looks that strangers ask for, so that many of them cost what one does: 1,000 files take a few milliseconds.
pub const TRUST_LOOK_APART: Duration = Duration::from_millis(20);
/// How often the acceptor looks whether trust has been read anew while a stranger waits for that.
pub const TRUST_AWAIT_MS: u16 = 10;
/// A peer that comes often is noted so often.
pub const SEEN_AGAIN: Duration = Duration::from_secs(10);
/// Commands of one user whose first answer a daemon waits for at once, a thread each; further ones of that user wait, up to a
/// bound, and above that go their own way.
pub const CARRIERS_A_USER: usize = 8;
pub const CARRIERS_WAITING_A_USER: usize = 24;
/// Those of all users: three at their share leave as much for others.
pub const CARRIERS_MAX: usize = 4 * CARRIERS_A_USER;
/// How long a daemon waits for the other machine before the program goes its own way.
pub const CARRY_DEADLINE_MS: u64 = 2_000;
/// Programs that have connected for a voucher and were not accepted yet: that takes microseconds.
pub const VOUCH_BACKLOG: i32 = 128;
/// How long one of them may take until it has asked, and hold a thread of its user's.
pub const VOUCH_PATIENCE_MS: u64 = 200;
/// Programs of one user that are heard at once, a thread each: one that asks is answered within a millisecond or two.
pub const VOUCHERS_A_USER: usize = 8;
/// Further ones of one user that wait for those, an fd each; above it they are told so.
pub const VOUCHERS_WAITING_A_USER: usize = 256;
/// Those of all users: three at their share leave as much for others.
pub const VOUCHERS_MAX: usize = 4 * VOUCHERS_A_USER;
/// How long a program waits for a daemon's word: a backlog of slow ones, and then another daemon may answer.
pub const VOUCH_WAIT_MS: u64 = 3_000;

/// Silence after which a link is asked whether it lives.
pub const PING_AFTER_MS: u64 = 2_000;
/// Silence after which it is dead: three pings unanswered.
pub const DEAD_AFTER_MS: u64 = 7_000;
/// For so long the kernel of a machine whose program is stopped may be silent: its answers to a window that stays full are
/// asked for every two minutes (TCP_RTO_MAX).
pub const EXCUSED_KERNEL_MS: u64 = 130_000;
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
/// Time to tell peers that the remaining sessions end.
pub const LAST_WORDS_MS: u64 = 300;
/// Control frames waiting on a LAT link: two for each stream; a peer that makes more and reads none is cut off.
pub const CONTROL_QUEUE_MAX: usize = 2 * STREAMS_MAX;
/// Recipes being collected on one link pair, all streams together: four of the largest messages.
pub const RECIPES_PENDING_MAX: usize = 4 * RECIPES_MAX;
/// RECIPE and MOVE frames of one stream that may wait for the other link: the recipes of one message in LAT frames
/// (66), and as many moves as fit a round trip.
pub const EARLY_CONTROL_MAX: usize = 256;
/// Places that a list of streams or operations keeps for the next ones: below it a shrink gains nothing.
pub const SLACK_MIN: usize = 256;
/// A burst of streams is over when so many fewer are left, and fewer than half of them: each left about 1 KiB of holes.
pub const BURST_MIN: usize = 256;
/// Ticks of a worker after which the allocator is asked for what the burst has left: not between two waves of one burst, and
/// when the threads that it has started have ended (ASK_IDLE_MS).
pub const BURST_REST_TICKS: u32 = 16;
/// Arenas of the allocator besides one a worker: asks, connects and helpers share these.
pub const ARENAS_BESIDE: usize = 3;
/// Submission queue: one turn of a worker rarely submits more; a full queue is submitted and goes on.
pub const RING_SQ_ENTRIES: u32 = 256;
/// Completion queue: a burst of completions between two turns; the kernel keeps what does not fit (IORING_FEAT_NODROP).
pub const RING_CQ_ENTRIES: u32 = 4096;
/// Memory for buffers and message headers comes from the kernel in regions of this size, which cost nothing until used.
pub const REGION_BYTES: usize = 1 << 20;
/// Message headers kept for the next message, 2 KiB each: as many as are usually in flight at once on one worker.
pub const ENVELOPES_KEPT: usize = 64;
/// Watches told in one look, an array on the stack; the next look tells the rest.
pub const WATCH_EVENTS: usize = 64;
/// How long one message of the probe for an engine may take: it never leaves its thread.
pub const ENGINE_PROBE: Duration = Duration::from_secs(1);
/// A ring that goes waits so long, and so often, for its cancelled operations: a second in all, for a slow disk.
pub const RING_DROP_WAIT: Duration = Duration::from_millis(100);
pub const RING_DROP_WAITS: usize = 10;
/// Events of one epoll_wait(2), 12 bytes each: as many as a submission queue holds; the rest comes with the next one.
pub const EPOLL_EVENTS: usize = RING_SQ_ENTRIES as usize;
/// Helper threads of a process: as many blocking calls (connect, open, fork) as may be under way at once.
pub const HELPERS_MAX: usize = 64;
/// Ticks of a worker between two looks at whether programs still hold the listeners that were made for them: two seconds.
pub const LISTENER_LOOK_TICKS: u64 = 4;
/// Before the second look, which alone counts.
pub const LISTENER_LOOK_AGAIN_MS: u64 = 50;
/// A helper's stack, as std's threads have it: its jobs are of many kinds.
pub const HELPERS_STACK_BYTES: usize = 2 << 20;
/// Helpers that wait for room in the queues of listeners that crossed, a second at most: a quarter of them, so that a
/// program which does not accept delays nobody else. Further clients of a full one are refused at once.
pub const LISTENER_WAITERS_MAX: usize = HELPERS_MAX / 4;
/// Threads that close files whose file system may never answer.
pub const CLOSERS_MAX: usize = 4;
/// Files that wait for them: so many stay open when all hang, and from then on no stream may bring more. What messages
/// that were being received meanwhile bring is above it.
pub const CLOSING_MAX: usize = 1024;
/// A helper without work ends after this time.
pub const HELPERS_IDLE_MS: u64 = 10_000;
/// What one SENDMSG on a LAT link may carry: four full frames, so that a control frame waits for little.
pub const LAT_BATCH: usize = 4 * LAT_FRAME_MAX as usize;
/// What one SENDMSG on a BULK link may carry: enough to fill a TCP send buffer's usual room.
pub const BULK_BATCH: usize = 4 * BULK_FRAME_MAX as usize;
/// Buffers in use on one worker above which small pieces are copied out of large buffers: a slow reader of a few bytes
/// must not keep 64 KiB.
pub const POOL_PRESSURE: usize = 16 << 20;
/// A read that has waited so long gives its buffer back and waits for readiness only.
pub const COOL_AFTER_MS: u64 = 1_000;
/// Pieces that one send to a program may gather.
pub const GATHER_MAX: usize = 64;
/// Looks through /proc for the process that holds a socket: one may miss an fd that is given another number just then,
/// at a program's start; two such moments in a row are rare enough for a third to be the last.
pub const PEER_LOOKS: usize = 3;
/// Link pairs of one session, and so worker threads of one node: the cores of a large DPU.
pub const LINKS_MAX: usize = 64;
/// Sessions of one key: one with its node, and one for each command that no daemon carries: twice COMMANDS_A_KEY, because a
/// command's session may outlive it for a moment.
pub const SESSIONS_A_KEY: usize = 2 * COMMANDS_A_KEY;
/// Sessions of one node: three keys at their quota leave as much for others.
pub const SESSIONS_MAX: usize = 4 * SESSIONS_A_KEY;
/// Commands of one key at once: the virtual machines of a large host and their helpers. Each costs a thread, a supervisor
/// process and a few fds.
pub const COMMANDS_A_KEY: usize = 512;
/// Commands that one node runs at once: three keys at their quota leave as much for others. With 6 fds each 12,288, below the
/// usual limit of 20,000.
pub const COMMANDS_MAX: usize = 4 * COMMANDS_A_KEY;
/// File links of one key, one a mounted directory: the offload has five, and one that broke may be there for a moment beside
/// the one that follows it.
pub const FILE_LINKS_A_KEY: usize = 64;
/// File links that one node serves: three keys at their quota leave as much for others. A thread and 4 fds each while nothing
/// is mounted.
pub const FILE_LINKS_MAX: usize = 4 * FILE_LINKS_A_KEY;
/// A file link must say what it mounts by then: the near side sends that right behind its HELLO.
pub const FILE_MOUNT_DEADLINE_MS: u64 = 5_000;
/// How often a refusal that a peer can cause at will is said, for each peer and reason.
pub const REFUSED_SAID_EVERY: Duration = Duration::from_secs(60);
/// Such refusals that are remembered, 100 bytes each: a few reasons for each of PEERS_MAX peers.
pub const SELDOM_CONDITIONS_MAX: usize = 4 * PEERS_MAX;
/// A peer that has opened a command must send its whole request by then.
pub const EXEC_REQUEST_DEADLINE_MS: u64 = 30_000;
/// A verdict on OPEN must come within this time.
pub const OPEN_DEADLINE_MS: u64 = 10_000;

/// Supplementary groups of one caller. With the path they fit an OPEN: 4096 + 4 * 2048 + 64 (fixed part) < OPEN_MAX.
pub const CALLER_GROUPS_MAX: usize = 2048;
/// A host path in a request: PATH_MAX, with its NUL.
pub const HOST_PATH_MAX: usize = 4096;
/// The far side's verdict on a connect must have come by then: less than the shim's 5 s, so that the shim never gives
/// up on a daemon that is about to touch its socket.
pub const CONNECT_DEADLINE_MS: u64 = 4_500;
/// A whole request must have come by then: the shim sends it right behind its connect.
pub const ASK_DEADLINE_MS: u64 = 1_000;
/// Asks of one user served at once: more than may wait for a backlog over there (BACKLOG_WAITERS_A_KEY), and as many again.
/// Each holds a thread (256 KiB of stack, mostly untouched) and a few fds until its verdict.
pub const ASKS_A_USER: usize = 2 * BACKLOG_WAITERS_A_KEY;
/// Further ones of one user that wait for those, an fd each; above it EAGAIN.
pub const ASKS_WAITING_A_USER: usize = 1024;
/// Asks of all users served at once: three users at their share leave as much for others.
pub const ASKS_MAX: usize = 4 * ASKS_A_USER;
/// Threads that stay when there is nothing to do: a burst of this size starts none.
pub const ASK_THREADS_KEPT: usize = 8;
/// A thread with nothing to do for so long closes its listeners, and ends if it is not one of those kept.
pub const ASK_IDLE_MS: u64 = 5_000;
/// The stack of a thread that serves asks or assumes identities: no recursion but nine links; the largest buffer on it is
/// a request of 4 KiB.
pub const ASK_STACK_BYTES: usize = 256 << 10;
/// Private listeners kept for the next ask of the same name: a burst of this many finds its listeners again.
pub const KEPT_LISTENERS_MAX: usize = 64;
/// Sockets of the other machine that are exported here, a thread each.
pub const EXPORTS_MAX: usize = 64;
/// How long an export's thread waits before it looks whether it is still wanted.
pub const EXPORT_LOOK_MS: u64 = 100;
/// Datagram sockets that stand for far ones, at once: three fds each, and two questions to the kernel a sweep, which
/// cost up to 0.1 ms each with thousands of sockets on the machine. Above it the longest unused makes room, or ENOBUFS.
pub const OUTLETS_MAX: usize = 1024;
/// How often they are asked whether their caller is still there.
pub const OUTLET_SWEEP_MS: u64 = 2_000;
/// Sweeps that must find a caller gone: what it sent last is on its way meanwhile.
pub const OUTLET_GONE_SWEEPS: u32 = 2;
/// Sweeps after which a stream ends though something that its caller sent has not left this machine.
pub const OUTLET_LINGER_SWEEPS: u32 = 5;
/// One that sendto() made for a caller that can't be answered ends after so long without a datagram.
pub const OUTLET_IDLE_MS: u64 = 60_000;
/// One of sendto()'s that was used within this time is not taken away: its datagram may still be in it.
pub const OUTLET_FRESH_MS: u64 = 1_000;
/// Directories in the binder's private tree; above it the tree is made anew.
pub const PRIVATE_DIRS_MAX: usize = 512;
/// Threads that assume callers' identities and stay; they never wait for a backlog.
pub const IDENTITY_THREADS: usize = 4;
/// Connects of one key that wait for room in a listener's backlog at once, a thread each; above it EAGAIN.
pub const BACKLOG_WAITERS_A_KEY: usize = 64;
/// Those of all keys: three at their quota leave as much for others.
pub const BACKLOG_WAITERS_MAX: usize = 4 * BACKLOG_WAITERS_A_KEY;
/// Threads that connect as callers: all waiters may be waiting, and as many again are there for the rest.
pub const IDENTITY_THREADS_MAX: usize = 2 * BACKLOG_WAITERS_MAX;
/// Of which one key has at most so many: its waiters, and as many that are at work. Its further connects wait for these.
pub const CONNECTS_A_KEY: usize = 2 * BACKLOG_WAITERS_A_KEY;
/// Connects of one key that wait for one of its threads; above it EAGAIN. More than another node asks for at once
/// (ASKS_MAX), 4 KiB each at most.
pub const CONNECTS_WAITING_A_KEY: usize = 1024;
/// How long one wait for room lasts before the waiter looks whether it is still wanted.
pub const BACKLOG_LOOK_MS: u64 = 100;
/// Mounts whose kind is remembered; then all are forgotten and learnt again.
pub const MOUNTS_REMEMBERED_MAX: usize = 1024;

/// A peer's file, a whitelist or a key file: people write them. The largest whitelist that the guide's programs read is
/// a few KiB.
pub const POLICY_FILE_MAX: u64 = 256 << 10;
/// Rules of one service in one peer's file: each OPEN may look at all of them.
pub const POLICY_RULES_MAX: usize = 1024;
/// Patterns in one rule's list.
pub const POLICY_LIST_MAX: usize = 256;
/// Keys of one peer: the old one and the new one of a rotation, and room for mistakes.
pub const PEER_KEYS_MAX: usize = 16;
/// Networks of one peer.
pub const PEER_ADDRESSES_MAX: usize = 64;
/// Peers of one machine.
pub const PEERS_MAX: usize = 1024;

/// What must stay free beside a new rootfs: libvirtd's logs and caches, and what apt needs to put one package right.
pub const ROOTFS_SPARE_BYTES: u64 = 64 << 20;

/// libvirtd's first start runs each emulator of the host twice over, about a second each in software emulation.
pub const OFFLOAD_READY: Duration = Duration::from_secs(60);
/// How long a daemon of the offload may take to end before SIGKILL: libvirtd closes its clients, then its drivers.
pub const OFFLOAD_STOP: Duration = Duration::from_secs(15);
/// A mount helper whose mount is gone ends within this time; one that is still there has mounted since.
pub const OFFLOAD_LATE_MOUNT: Duration = Duration::from_secs(2);
/// How often a state of the offload is looked at while it is awaited.
pub const OFFLOAD_POLL: Duration = Duration::from_millis(50);
/// A command inside the offload, such as one of virsh, that has no answer by then has none.
pub const OFFLOAD_ASK: Duration = Duration::from_secs(20);
/// How long a mount of the host's may take to answer a statfs(2) before it counts as dead: a disk that has to spin up
/// answers in time.
pub const OFFLOAD_STATFS: Duration = Duration::from_secs(10);
/// How long a connect waits for room in the backlog of a daemon's socket: one that is only busy accepts within this.
pub const OFFLOAD_CONNECT: Duration = Duration::from_secs(2);
/// What is shown of a log when a daemon does not come up.
pub const LOG_TAIL_LINES: usize = 12;

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
/// The open files that those locks were taken through, all together, of one link; ENOLCK above. Nearly every owner has
/// one a lock file, and a few (SQLite) have some. 24 bytes each.
pub const LOCK_HANDLES_MAX: usize = 4 * LOCK_FILES_MAX;
/// Inodes of one link that the near kernel may remember, about 250 bytes each: 1 GiB. ENOMEM above.
pub const NODES_MAX: usize = 4 << 20;
/// O_PATH fds kept for inodes that were used lately, of one link. With `OPEN_FILES_MAX` twice (the file and its inode)
/// and `LOCK_FILES_MAX` one link stays below the usual limit of 20,000.
pub const NODE_FDS_MAX: usize = 1024;
/// An fd of an inode or of a mount below an export that is unused so long, twice that at most, is closed: a file that the
/// host deletes must give its space back, and what is mounted below an export must unmount, while somebody waits for it.
/// To open an inode again costs a few system calls, which once a second nobody notices.
pub const NODE_IDLE: Duration = Duration::from_secs(1);
/// Open files and directories of one link; ENFILE above.
pub const OPEN_FILES_MAX: usize = 6 << 10;
/// Mounts below one export that the near kernel remembers, each with an fd while it is used; ENFILE above.
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
/// How long an open goes on looking for a session that takes new streams, when there was one a moment ago: a handshake
/// on a busy machine.
pub const REOPEN_MS: u64 = 500;
/// Completions a tick of half a second from which a worker is busy: about a tenth of a processor. It then lets whoever runs
/// finish before it wakes (SCHED_BATCH); below it every message is worth an interruption.
pub const BUSY_A_TICK: usize = 25_000;
/// A file that was passed is kept for the program that it goes to for so long, whatever its giver does meanwhile: its
/// message may wait in a slow program's window.
pub const PIN_MS: u64 = 30_000;
/// So many a mount: a few messages full of fds. Above it the oldest goes.
pub const PINS_MAX: usize = 1024;
/// When a command's BULK link is dialled: most commands have ended by then, and LAT carries a gigabyte a second meanwhile.
pub const BULK_AFTER_MS: u64 = 20;
/// How long a command that ends meanwhile waits for that handshake.
pub const DIAL_END_MS: u64 = 100;
/// A peer that leaves closes both links of a pair at once: what the later one still carries comes within this.
pub const HALF_CLOSED_MS: u64 = 5_000;
