//! What is asked about datagram sockets: connect(), and sendto() to a name.
//!
//! ```text
//!   caller's socket ──datagrams──▶ outlet (named as what was asked for) ═══ far socket ──▶ far server
//!                   ◀───answers─── connected to the caller's, if that has a name ◀══════════
//! ```
//!
//! A caller with a name can be answered, as among local sockets: the far socket gets a name of the kernel's choice
//! (the far server sees that, not the caller's), and the outlet is connected to the caller's own socket, reached by
//! the inode that the kernel says it is bound to and not by its path, which may lead anywhere by now.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tracing::{debug, warn};

use super::End;
use super::abstract_name::{as_path, network_id};
use super::ask::{Asking, Desk, No, attach, identity};
use super::exports::datagram_pair;
use super::outlets::{Key, Network, Outlet};
use crate::errno::Errno;
use crate::sys::peer;
use crate::sys::unix::{self, SocketKind};
use crate::sys::unix_diag::{Diag, SocketId};
use crate::udsproxyd::wire::ConnectRequest;

/// A bound socket of ours, not attached yet.
struct Bound {
    socket: OwnedFd,
    inode: OwnedFd,
    own: SocketId,
    network: Arc<Network>,
}

impl Desk {
    pub(super) fn connect_datagram(&self, asking: &Asking<'_>) -> Result<(), No> {
        let (caller, request) = self.datagram_request(asking)?;
        if !self.outlets.has_room() {
            return Err(No::Errno(Errno::ENOBUFS));
        }
        let stream = self.ask_for(asking, &request)?;
        let local = asking.local.as_fd();
        let bound = self.bind_outlet(asking)?;
        unix::connect_to_inode(local, bound.inode.as_fd())?;
        bound.answer(local, caller).map_err(|_| No::Errno(Errno::ECONNRESET))?;
        let Bound { socket, own, network, .. } = bound;
        let end = attach(stream, socket, &request)?;
        let outlet = Outlet { found_by: None, caller, own, network, end, used: Instant::now(), gone: 0 };
        self.outlets.add(outlet)?;
        Ok(())
    }

    /// The inode (O_PATH) that takes this caller's datagrams to this name.
    pub(super) fn send_to(&self, asking: &Asking<'_>) -> Result<OwnedFd, No> {
        if SocketKind::of(asking.local.as_fd()) != Ok(SocketKind::Datagram) {
            return Err(No::NotRemote);
        }
        let (caller, request) = self.datagram_request(asking)?;
        let (typed, target, who) = (asking.typed.to_vec(), request.name.clone(), request.caller.clone());
        let key = Key { caller, named: request.named, typed, target, who };
        if let Some(inode) = self.outlets.find(&key)? {
            return Ok(inode);
        }
        if !self.outlets.has_room() {
            return Err(No::Errno(Errno::ENOBUFS));
        }
        let stream = self.ask_for(asking, &request)?;
        let bound = self.bind_outlet(asking)?;
        bound.answer(asking.local.as_fd(), caller)?;
        let Bound { socket, inode, own, network } = bound;
        let end = attach(stream, socket, &request)?;
        let found_by = Some((key, inode));
        let outlet = Outlet { found_by, caller, own, network, end, used: Instant::now(), gone: 0 };
        Ok(self.outlets.add(outlet)?.expect("it is found by its key"))
    }

    /// A datagram socket whose datagrams go to a far one as this daemon itself, and what ends that.
    pub(super) fn open_way(&self, name: &[u8]) -> Result<(OwnedFd, End), No> {
        let (ours, theirs) = datagram_pair().map_err(|e| No::Errno(e.errno))?;
        let caller = identity(theirs.as_fd(), peer::peer(theirs.as_fd())?)?;
        let kind = SocketKind::Datagram;
        let request = ConnectRequest { kind, name: name.to_vec(), caller, nonblocking: true, named: false };
        let stream = self.ask_far(&request)?;
        Ok((ours, attach(stream, theirs, &request)?))
    }

    fn datagram_request(&self, asking: &Asking<'_>) -> Result<(SocketId, ConnectRequest), No> {
        let local = asking.local.as_fd();
        let request = ConnectRequest {
            kind: SocketKind::Datagram,
            name: self.target(asking)?,
            caller: identity(asking.control, asking.asker)?,
            // Nothing about it waits.
            nonblocking: true,
            named: unix::is_named(local)?,
        };
        Ok((SocketId::of(local)?, request))
    }

    /// A socket in the caller's network namespace, where alone it can reach an abstract name of the caller's.
    fn bind_outlet(&self, asking: &Asking<'_>) -> Result<Bound, Errno> {
        let local = asking.local.as_fd();
        let socket = self.names.beside(local, || unix::socket(SocketKind::Datagram, true))?;
        let named = if asking.typed.first() == Some(&0) { as_path(asking.typed) } else { asking.typed.to_vec() };
        let (socket, inode) = self.private.bind_datagram(socket, &named)?;
        let id = network_id(&unix::network_of(local)?)?;
        let network = match self.outlets.network(id) {
            Some(network) => network,
            None => Arc::new(Network { id, diag: Mutex::new(self.names.beside(local, Diag::open)?) }),
        };
        Ok(Bound { own: SocketId::of(socket.as_fd())?, socket, inode, network })
    }
}

impl Bound {
    /// Connects it to the caller's socket, if that has a name. One that can't be reached is not answered; EPERM: somebody
    /// else was reached.
    fn answer(&self, local: BorrowedFd<'_>, caller: SocketId) -> Result<(), Errno> {
        let name = unix::name_of(local)?;
        let reached = match name.first() {
            None => return Ok(()),
            Some(0) => unix::connect(self.socket.as_fd(), &name),
            Some(_) => unix::inode_of(local).and_then(|i| unix::connect_to_inode(self.socket.as_fd(), i.as_fd())),
        };
        if let Err(errno) = reached {
            // EPERM: it is connected to somebody else, and takes datagrams from nobody but that.
            debug!(%errno, "a caller that can't be answered");
            return Ok(());
        }
        // A file system may give two sockets one inode.
        let mut diag = self.network.diag.lock().expect("a panic ends the process");
        if diag.find(self.own)?.and_then(|own| own.peer) != Some(caller.ino) {
            warn!("refused: the name of a caller's socket leads to another one");
            return Err(Errno::EPERM);
        }
        Ok(())
    }
}
