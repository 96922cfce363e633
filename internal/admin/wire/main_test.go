package wire

import (
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

func TestMain(m *testing.M) { mirrortest.Main(m) }
