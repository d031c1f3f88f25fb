// A mutex of etcd's own Go package, told by lines what to do; it answers each with yes or no. Arguments: endpoint, name and
// the TTL of its session in seconds.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	ttl, err := strconv.Atoi(os.Args[3])
	check(err)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Args[1]}})
	check(err)
	session, err := concurrency.NewSession(client, concurrency.WithTTL(ttl))
	check(err)
	mutex := concurrency.NewMutex(session, os.Args[2])
	verbs := map[string]func() bool{
		// Version 3.4 has no other way to try.
		"try": func() bool {
			soon, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			return mutex.Lock(soon) == nil
		},
		"wait":    func() bool { return mutex.Lock(context.Background()) == nil },
		"release": func() bool { return mutex.Unlock(context.Background()) == nil },
		"owns": func() bool {
			answer, err := client.Txn(context.Background()).If(mutex.IsOwner()).Commit()
			return err == nil && answer.Succeeded
		},
	}
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		if verbs[orders.Text()]() {
			fmt.Println("yes")
		} else {
			fmt.Println("no")
		}
	}
}
