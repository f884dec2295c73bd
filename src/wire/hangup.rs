//! Notices that a peer has gone while nobody reads from its connection.
//! Out of scope: the consequences.

use tokio::io::Interest;
use tokio::net::UnixStream;

/// Returns when the peer has closed its socket, even while nobody reads what it has sent before.
pub(super) async fn closed_by_peer(stream: &UnixStream) {
    // EPOLLHUP and EPOLLRDHUP are reported to those that wait for priority data, which Unix sockets do not have; those that wait for data
    // would be woken by data.
    let _ = stream.ready(Interest::PRIORITY).await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_has_closed_is_noticed_while_its_data_is_not_read() {
        let (local, theirs) = UnixStream::pair().unwrap();
        let watched = tokio::time::timeout(Duration::from_millis(50), closed_by_peer(&local));
        assert!(watched.await.is_err(), "it is open");
        theirs.writable().await.unwrap();
        theirs.try_write(b"data").unwrap();
        local.readable().await.unwrap();
        let watched = tokio::time::timeout(Duration::from_millis(50), closed_by_peer(&local));
        assert!(watched.await.is_err(), "it is open and has sent data");
        drop(theirs);
        closed_by_peer(&local).await;
        let mut buffer = [0; 8];
        assert_eq!(local.try_read(&mut buffer).unwrap(), 4, "it can be read");
    }
}
