// Instantmirror is a site-local mirror of RPM distributions that exists the moment it is enabled: clients see the
// whole mirror, the disk holds only what somebody used.
//
//	instantmirror serve --root ./mirror --profile fedora
//
// serves Fedora's mirror at http://localhost:8080/pub/fedora/linux/. What a client asks for is fetched from upstream
// once, stored below --root under its real mirror path, and served from there from then on. http://localhost:8080/-/
// says how to point a client here. SIGHUP reloads the configuration; SIGTERM and SIGINT stop the daemon once the
// transfers under way are done, after 20 seconds at most.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/alecthomas/kong"

	"github.com/instantmirror/instantmirror/internal/admin"
	"github.com/instantmirror/instantmirror/internal/daemon"
	"github.com/instantmirror/instantmirror/internal/profile"
)

// version is set when a release is built: -ldflags "-X main.version=1.0".
var version string

// Exit statuses, the same for every command.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // wrong usage or configuration
)

type commands struct {
	Serve   serveCmd   `cmd:"" help:"Serve the mirror."`
	Status  statusCmd  `cmd:"" help:"Say what is mirrored, how fresh it is, and how the upstreams are."`
	Refresh refreshCmd `cmd:"" help:"Look upstream now."`
	Expire  expireCmd  `cmd:"" help:"Throw away what is stored at a path."`
	Prune   pruneCmd   `cmd:"" help:"Delete what nothing vouches for any more."`
	Verify  verifyCmd  `cmd:"" help:"Compare every byte in the tree with what vouches for it."`
	Why     whyCmd     `cmd:"" help:"Say all that is known of one path."`
	Check   checkCmd   `cmd:"" help:"Check the configuration and the profiles, or just the given profile files."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

// output is where a command prints.
type output struct{ out, err io.Writer }

func main() { os.Exit(run(os.Args[1:], output{os.Stdout, os.Stderr})) }

// run carries out one command line and returns the exit status.
func run(args []string, o output) int {
	var c commands
	exit := -1
	parser, err := kong.New(&c,
		kong.Name("instantmirror"),
		kong.Description("A site-local mirror of RPM distributions that exists the moment it is enabled."),
		kong.Writers(o.out, o.err),
		kong.Exit(func(code int) { exit = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Bind(o),
		kong.Vars{"config": daemon.DefaultConfig},
	)
	if err != nil {
		panic(err) // the struct tags are wrong
	}
	ctx, err := parser.Parse(args)
	if exit >= 0 { // --help was printed
		return exit
	}
	if err != nil {
		fmt.Fprintf(o.err, "instantmirror: %v\nTry instantmirror --help.\n", err)
		return exitUsage
	}
	err = ctx.Run()
	var wrong profile.Errors
	var bad *configError
	var usage *admin.UsageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &wrong):
		fmt.Fprintln(o.err, err)
		return exitUsage
	case errors.As(err, &bad), errors.As(err, &usage):
		fmt.Fprintf(o.err, "instantmirror: %v\n", err)
		return exitUsage
	default:
		fmt.Fprintf(o.err, "instantmirror: %v\n", err)
		return exitFailed
	}
}

// configError is a mistake in the configuration that has no line in a file.
type configError struct{ err error }

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

type versionCmd struct{}

func (versionCmd) Run(o output) error {
	_, err := fmt.Fprintln(o.out, "instantmirror", programVersion())
	return err
}

// programVersion is the release, or where the binary was built from.
func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
