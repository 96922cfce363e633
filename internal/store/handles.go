package store

import (
	"container/list"
	"hash/maphash"
	"os"
	"sync"
	"time"
)

const (
	// maxIdle bounds the file handles kept open for the next request.
	maxIdle = 1024
	// recheck is how long a kept handle is believed to stand at its path without looking the path up again. What
	// this process removes or replaces is noticed at once, by forget. What others do is noticed at once by the
	// file's link count and change time; only the renaming of a directory above it is not.
	recheck = 2 * time.Second
)

// File is a stored file, open for reading. Its handle has a read offset of its own and is used by one request at a
// time, so that net/http may hand it to sendfile.
type File struct {
	*os.File
	Size    int64 // bytes
	ModTime time.Time

	name    string
	links   uint64
	changed time.Time // its inode
	opened  time.Time
	epoch   uint64 // of its name, when it was opened
	owner   *handles
	elem    *list.Element // in owner.lru while idle
}

// Close gives the handle back: it is kept open for the next request of that path.
func (f *File) Close() { f.owner.put(f) }

// handles keeps recently used files open, so that a hit costs one fstat instead of one openat per path element.
type handles struct {
	open func(name string) (*os.File, os.FileInfo, error)

	mu     sync.Mutex
	idle   map[string][]*File
	lru    list.List // of *File, most recently used first
	closed bool
	// epochs counts what forget was called for, names being spread over it. A file that was opened in an earlier epoch
	// of its name may have another name by now: it is not kept.
	epochs [256]uint64
	seed   maphash.Seed
}

// epoch is the one of name. The caller holds h.mu.
func (h *handles) epoch(name string) *uint64 {
	return &h.epochs[maphash.String(h.seed, name)%uint64(len(h.epochs))]
}

func (h *handles) get(name string) (*File, error) {
	var epoch uint64
	for {
		var f *File
		if f, epoch = h.take(name); f == nil {
			break
		}
		if f.stands() {
			return f, nil
		}
		f.File.Close()
	}
	f, info, err := h.open(name)
	for err == nil && infoOf(name, info).Links == 0 { // it was replaced between open and fstat
		f.Close()
		f, info, err = h.open(name)
	}
	if err != nil {
		return nil, err
	}
	return &File{
		File: f, Size: info.Size(), ModTime: info.ModTime(), name: name,
		links: infoOf(name, info).Links, changed: changed(info), opened: time.Now(), epoch: epoch, owner: h,
	}, nil
}

// stands reports whether the open file is still what its path names, as far as the file itself can tell.
func (f *File) stands() bool {
	if time.Since(f.opened) > recheck {
		return false
	}
	info, err := f.Stat()
	return err == nil && infoOf(f.name, info).Links == f.links &&
		info.Size() == f.Size && info.ModTime().Equal(f.ModTime) && changed(info).Equal(f.changed)
}

// take gives an idle file of name, nil if there is none, and the epoch.
func (h *handles) take(name string) (*File, uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	epoch := *h.epoch(name)
	list := h.idle[name]
	if len(list) == 0 {
		return nil, epoch
	}
	f := list[len(list)-1]
	h.drop(f)
	return f, epoch
}

// drop takes an idle file out of the books. It must be called with mu held.
func (h *handles) drop(f *File) {
	h.lru.Remove(f.elem)
	f.elem = nil
	list := h.idle[f.name]
	for i := range list {
		if list[i] == f {
			list = append(list[:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(h.idle, f.name)
	} else {
		h.idle[f.name] = list
	}
}

func (h *handles) put(f *File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.elem != nil {
		return // closed already: it is idle, and no one's
	}
	if h.closed || time.Since(f.opened) > recheck || f.epoch != *h.epoch(f.name) {
		f.File.Close()
		return
	}
	if h.idle == nil {
		h.idle = make(map[string][]*File)
	}
	h.idle[f.name] = append(h.idle[f.name], f)
	f.elem = h.lru.PushFront(f)
	if h.lru.Len() > maxIdle {
		oldest := h.lru.Back().Value.(*File)
		h.drop(oldest)
		oldest.File.Close()
	}
}

// forget closes what is kept open of name, and has what is in use not be kept, because name stands for another file
// now, or for none.
func (h *handles) forget(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*h.epoch(name)++
	for len(h.idle[name]) > 0 {
		f := h.idle[name][0]
		h.drop(f)
		f.File.Close()
	}
}

func (h *handles) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for h.lru.Len() > 0 {
		f := h.lru.Front().Value.(*File)
		h.drop(f)
		f.File.Close()
	}
}
