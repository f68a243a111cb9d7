// Writes the files of this folder with golang.org/x/mod and filippo.io/torchwood: see README.md.
package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	origin = "log.example/golden"
	size   = 600
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func write(name string, data []byte) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		panic(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		panic(err)
	}
}

// key is a throwaway whose secret is the hash of its name.
func key(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func main() {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var hashes []tlog.Hash
		for _, index := range indexes {
			hashes = append(hashes, stored[index])
		}
		return hashes, nil
	})
	leaf := func(index int64) []byte { return []byte(fmt.Sprintf("leaf %d\n", index)) }
	for index := int64(0); index < size; index++ {
		stored = append(stored, must(tlog.StoredHashes(index, leaf(index), reader))...)
	}

	for _, tile := range tlog.NewTiles(torchwood.TileHeight, 0, size) {
		write(torchwood.TilePath(tile), must(tlog.ReadTileData(tile, reader)))
		if tile.L == 0 {
			var bundle []byte
			for index := tile.N * torchwood.TileWidth; index < tile.N*torchwood.TileWidth+int64(tile.W); index++ {
				bundle = must(torchwood.AppendTileEntry(bundle, leaf(index)))
			}
			tile.L = -1
			write(torchwood.TilePath(tile), bundle)
		}
	}

	secret := key(origin)
	public := append([]byte{1}, secret.Public().(ed25519.PublicKey)...)
	hash := sha256.Sum256(append([]byte(origin+"\n"), public...))
	signer := must(note.NewSigner(fmt.Sprintf("PRIVATE+KEY+%s+%x+%s", origin, hash[:4],
		base64.StdEncoding.EncodeToString(append([]byte{1}, secret.Seed()...)))))
	vkeys := fmt.Sprintf("%s+%x+%s\n", origin, hash[:4], base64.StdEncoding.EncodeToString(public))
	signers := []note.Signer{signer}
	for _, name := range []string{"witness.example/one", "witness.example/two"} {
		witness := must(torchwood.NewCosignatureSigner(name, key(name)))
		signers = append(signers, witness)
		vkeys += witness.Verifier().String() + "\n"
	}
	write("vkeys", []byte(vkeys))

	root := must(tlog.TreeHash(size, reader))
	text := torchwood.Checkpoint{Origin: origin, Tree: tlog.Tree{N: size, Hash: root}}.String()
	checkpoint := must(note.Sign(&note.Note{Text: text}, signers...))
	write("checkpoint", checkpoint)

	for _, index := range []int64{0, 255, 256, 599} {
		proof := must(tlog.ProveRecord(size, index, reader))
		name := fmt.Sprintf("%d.tlog-proof", index)
		if index == 256 {
			write(name, torchwood.FormatProofWithExtraData(index, leaf(index), proof, checkpoint))
		} else {
			write(name, torchwood.FormatProof(index, proof, checkpoint))
		}
	}
	var lines strings.Builder
	for _, old := range []int64{1, 255, 256, 257, 511, 599, 600} {
		fmt.Fprintf(&lines, "%d %s", old, must(tlog.TreeHash(old, reader)))
		for _, hash := range must(tlog.ProveTree(size, old, reader)) {
			fmt.Fprintf(&lines, " %s", hash)
		}
		fmt.Fprintln(&lines)
	}
	write("consistency", []byte(lines.String()))
}
