package wire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxName is how many bytes the name of a socket may have (sun_path, without the NUL at its end).
	maxName = 107
	// mode is who may write to the socket, and so change the mirror.
	mode = 0o660
)

// short gives a name for socket that the system takes: itself, or where it is too long one by way of its directory, which
// stays open until done is called.
func short(socket string) (name string, done func(), err error) {
	if len(socket) <= maxName {
		return socket, func() {}, nil
	}
	dir, err := unix.Open(filepath.Dir(socket), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("opening the directory of the admin socket: %w", &fs.PathError{Op: "open", Path: filepath.Dir(socket), Err: err})
	}
	name = "/proc/self/fd/" + strconv.Itoa(dir) + "/" + filepath.Base(socket)
	if len(name) > maxName {
		_ = unix.Close(dir)
		return "", nil, fmt.Errorf("the admin socket's name %s is too long: name another one (socket)", filepath.Base(socket))
	}
	return name, func() { _ = unix.Close(dir) }, nil
}

// Listen opens the admin socket at the absolute path socket, for its owner and group. One that a dead daemon left behind is
// replaced, that of a live one never. The socket goes with the listener.
func Listen(socket string) (net.Listener, error) {
	dir, err := os.Open(filepath.Dir(socket))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening the admin socket: %w: make the directory and let the daemon's user own it, or name another socket (socket)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the admin socket: %w", err)
	}
	defer dir.Close()
	// Of two that find the same dead socket only one may replace it.
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("locking the directory of the admin socket %s: %w: another instantmirror may be opening it; try again", socket, err)
	}
	if err := dead(socket); err != nil {
		return nil, err
	}
	l, err := listen(socket)
	if err != nil {
		return nil, fmt.Errorf("opening the admin socket %s: %w: let the daemon's user write to its directory, or name another socket (socket)", socket, err)
	}
	return l, nil
}

// dead says why the socket may not be replaced; nil if there is none, or nobody behind it.
func dead(socket string) error {
	switch info, err := os.Lstat(socket); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking at the admin socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is no socket: remove it, or name another admin socket (socket)", socket)
	}
	c, err := connect(context.Background(), socket)
	switch {
	case err == nil:
		_ = c.Close()
		return fmt.Errorf("another instantmirror answers on the admin socket %s: stop that one, or name another socket (socket)", socket)
	case errors.Is(err, ErrNobody):
		return nil
	}
	return fmt.Errorf("is anybody behind the admin socket that is there? %w", err)
}

// listen puts a new socket in the place of socket.
func listen(socket string) (net.Listener, error) {
	fresh := socket + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	name, done, err := short(fresh)
	if err != nil {
		return nil, err
	}
	defer done()
	// The file that bind makes has the mode of the socket, less the umask: it is never wider than it should be.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), mode) }), err)
	}}
	l, err := config.Listen(context.Background(), "unix", name)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	unlinked := &listener{UnixListener: l.(*net.UnixListener), path: socket}
	unlinked.SetUnlinkOnClose(false)
	err = os.Chmod(fresh, mode) // whatever the umask is
	if err == nil {
		unlinked.info, err = os.Lstat(fresh)
	}
	if err == nil {
		err = os.Rename(fresh, socket)
	}
	if err != nil {
		return nil, errors.Join(err, unlinked.UnixListener.Close(), os.Remove(fresh))
	}
	return unlinked, nil
}

// listener takes its name from the file system when it is closed.
type listener struct {
	*net.UnixListener
	path string
	info fs.FileInfo
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if now, serr := os.Lstat(l.path); serr == nil && os.SameFile(now, l.info) { // it may be a successor's
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}
