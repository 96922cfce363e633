package trim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestChoice: while files come, are used and go, whatever is picked is what goes next of all that there is at that moment,
// by a choice of any size and age.
func TestChoice(t *testing.T) {
	for range 50 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testChoice(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

func testChoice(t *testing.T, r *rand.Rand) {
	now, serial := int64(1_000_000*grain), 0
	all := map[string]*file{}
	put := func(used int64) {
		serial++
		name := fmt.Sprint(serial)
		all[name] = &file{names: []string{name}, size: r.Int64N(3), used: used, rank: rank(r.IntN(20) / 18)}
	}
	hour := func() int64 { return now / grain * grain }
	for range r.IntN(100) {
		put(max(0, hour()-grain*(r.Int64N(50)-5)))
	}
	first := func() *file {
		var next *file
		for _, f := range all {
			if next == nil || before(f, next) < 0 {
				next = f
			}
		}
		return next
	}
	look := func(f *file) *file { return all[f.names[0]] }
	for range 20 {
		c := newChoice(1+r.IntN(50), now)
		for _, f := range all {
			copied := *f
			c.offer(&copied)
		}
		c.ready()
		if c.names > c.max {
			t.Fatalf("%d names, at most %d", c.names, c.max)
		}
		found := 0
		for {
			now += r.Int64N(grain / 2)
			for range r.IntN(3) {
				put(hour())
			}
			for _, f := range all {
				if r.IntN(20) == 0 {
					used := *f
					used.used = hour()
					all[f.names[0]] = &used
				}
				if r.IntN(100) == 0 {
					delete(all, f.names[0])
				}
			}
			list := c.pick(1, 1, false, look)
			if len(list) == 0 {
				break
			}
			found++
			if want := first(); list[0] != want {
				t.Fatalf("went %+v, before %+v", *list[0], *want)
			}
			delete(all, list[0].names[0])
		}
		// A new look always finds something, if there is anything.
		c = newChoice(1, now)
		for _, f := range all {
			c.offer(f)
		}
		c.ready()
		if list := c.pick(1, 1, true, look); len(list) != min(1, len(all)) || len(all) > 0 && list[0] != first() {
			t.Fatalf("right after a look at %d: %v", len(all), list)
		}
	}
}

// TestPick: as many as are needed, and no more.
func TestPick(t *testing.T) {
	for _, tc := range []struct {
		need  int64
		max   int
		fresh bool
		want  []string
	}{
		{1, 10, false, []string{"a"}},
		{10, 10, false, []string{"a"}},
		{11, 10, false, []string{"a", "c"}},
		{100, 10, false, []string{"a", "c"}},
		{100, 10, true, []string{"a", "c", "d", "e"}},
		{100, 3, true, []string{"a", "c"}}, // c has two names
		{0, 10, true, nil},
	} {
		c := newChoice(100, 100*grain)
		for _, f := range []*file{
			{names: []string{"e"}, size: 10, used: grain, rank: current},
			{names: []string{"d"}, size: 10, used: 100 * grain},
			{names: []string{"c", "c2"}, size: 10, used: 50 * grain},
			{names: []string{"b"}, size: 10, used: 40 * grain}, // not there any more
			{names: []string{"a"}, size: 10},
			{names: []string{"p"}, size: 10, rank: pointer},
		} {
			c.offer(f)
		}
		c.ready()
		list := c.pick(tc.need, tc.max, tc.fresh, func(f *file) *file {
			if f.names[0] == "b" {
				return nil
			}
			return f
		})
		var got []string
		for _, f := range list {
			got = append(got, f.names[0])
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%+v: got %v", tc, got)
		}
		if slices.ContainsFunc(c.files.list, func(f *file) bool { return f.rank == pointer }) {
			t.Error("a pointer is kept")
		}
	}
}

// TestUsedSince: of files that were all used since the look, the one goes whose use is the longest ago, unless there are
// others that the look left out.
func TestUsedSince(t *testing.T) {
	for _, max := range []int{3, 2} {
		since := map[string]int64{"a": 300, "b": 100, "c": 200}
		c := newChoice(max, 0)
		for i, name := range []string{"a", "b", "c"} {
			c.offer(&file{names: []string{name}, size: 1, used: int64(i)})
		}
		c.ready()
		var got []string
		for {
			list := c.pick(1, 1, true, func(f *file) *file {
				now := *f
				now.used = since[f.names[0]]
				return &now
			})
			if len(list) == 0 {
				break
			}
			got = append(got, list[0].names...)
		}
		if want := []string{"b", "c", "a"}; max == 3 && !slices.Equal(got, want) || max == 2 && got != nil {
			t.Errorf("at most %d: %v", max, got)
		}
	}
}
