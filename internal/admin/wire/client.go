package wire

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
)

// maxLine is how many bytes of one line of an answer are read.
const maxLine = 64 << 20

// ErrNobody says that no daemon answers on the socket.
var ErrNobody = errors.New("no daemon answers")

// Client calls the daemon on one socket.
type Client struct {
	socket string
	http   http.Client
}

// Dial finds out whether a daemon answers on socket. If not, the error is ErrNobody.
func Dial(ctx context.Context, socket string) (*Client, error) {
	c, err := connect(ctx, socket)
	if err != nil {
		return nil, err
	}
	_ = c.Close()
	client := &Client{socket: socket}
	client.http.Transport = &http.Transport{
		DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return connect(ctx, socket) },
	}
	return client, nil
}

// connect opens a connection to socket.
func connect(ctx context.Context, socket string) (net.Conn, error) {
	name, done, err := short(socket)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w on %s: there is no such socket", ErrNobody, socket)
	}
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := new(net.Dialer).DialContext(ctx, "unix", name)
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("%w on %s: there is no such socket", ErrNobody, socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w on %s: it was left behind", ErrNobody, socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("connecting to the admin socket %s: permission denied: be root, or in the group that it belongs to", socket)
	}
	return nil, fmt.Errorf("connecting to the admin socket %s: %w", socket, errors.Unwrap(err))
}

// Get makes a call that changes nothing, and calls item for each thing that the answer has.
func (c *Client) Get(ctx context.Context, name string, params url.Values, item func(json.RawMessage) error) error {
	return c.call(ctx, http.MethodGet, name+"?"+params.Encode(), nil, item)
}

// Post makes a call that changes something, with params as a JSON object.
func (c *Client) Post(ctx context.Context, name string, params any, item func(json.RawMessage) error) error {
	body, err := json.Marshal(params)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, name, body, item)
}

func (c *Client) call(ctx context.Context, method, name string, body []byte, item func(json.RawMessage) error) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://instantmirror"+prefix+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set(field, word)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", jsonType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return c.broken(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		words, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("the daemon on %s: %s: %s", c.socket, resp.Status, bytes.TrimSpace(words))
	}
	err = answer(resp.Body, item)
	if cut, ok := errors.AsType[*cutError](err); ok {
		return c.broken(ctx, cut.err)
	}
	return err
}

// cutError says that an answer has no end.
type cutError struct{ err error }

func (e *cutError) Error() string { return e.err.Error() }

// answer reads an answer: nil only if all of it was there and it says that the call was carried out.
func answer(r io.Reader, item func(json.RawMessage) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return fmt.Errorf("the daemon answers with what is no answer: %w", err)
		}
		switch {
		case l.Error != "" && l.Usage:
			return &UsageError{errors.New(l.Error)}
		case l.Error != "":
			return errors.New(l.Error)
		case l.Done:
			return nil
		}
		if err := item(l.Item); err != nil {
			return err
		}
	}
	err := lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return &cutError{err}
}

// broken is err of a connection that failed.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, ErrNobody) {
		return err
	}
	return fmt.Errorf("the daemon on %s went away before it was done: %w: see its log, and run the command again", c.socket, err)
}
