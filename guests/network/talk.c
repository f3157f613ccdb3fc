/* Many connections and datagrams between a Linux guest and its peer, for the tests of networks.
 *
 *   talk serve PORT                    send back what comes by TCP and UDP; prints "listening"
 *   talk connect ADDRESS PORT COUNT    that many connections, one after another; each is answered
 *   talk datagrams ADDRESS PORT COUNT [BYTES]
 *                                      numbered datagrams, WINDOW of them at a time; prints how many
 *                                      came back, and how many of them twice
 *   talk flood|shower ADDRESS PORT COUNT
 *                                      send datagrams as fast as can be, or have them sent here;
 *                                      prints how many arrived
 *   talk sink PORT | source PORT       take, or send, as much as whoever connects likes
 *   talk put|get ADDRESS PORT MIB      send to a sink, or take from a source
 *
 * What is measured is printed for benches/: "bench NAME VALUE UNIT".
 *
 * Addresses are of IPv4 or IPv6.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WINDOW 32
#define PATIENCE_MS 10000
#define QUIET_MS 500
#define WORDS 256

/* First words of datagrams that are not sent back; numbers never get there. */
#define COUNT_ME 0xc0000001u
#define HOW_MANY 0xc0000002u
#define SEND_MANY 0xc0000003u

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

static int reach(const char *name, const char *port, int type)
{
	struct addrinfo hints = { .ai_socktype = type, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV };
	struct addrinfo *to;
	int fd;

	if (getaddrinfo(name, port, &hints, &to))
		die("getaddrinfo");
	fd = socket(to->ai_family, type, 0);
	if (fd < 0 || connect(fd, to->ai_addr, to->ai_addrlen))
		die("connect");
	freeaddrinfo(to);
	return fd;
}

static int bound(int port, int type)
{
	struct sockaddr_in6 here = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int fd = socket(AF_INET6, type, 0), on = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
		die("socket");
	if (bind(fd, (void *)&here, sizeof(here)))
		die("bind");
	if (type == SOCK_STREAM && listen(fd, 128))
		die("listen");
	return fd;
}

static void answer_connection(int listener)
{
	static char piece[65536];
	int fd = accept(listener, NULL, NULL);
	ssize_t got;

	if (fd < 0)
		return;
	while ((got = read(fd, piece, sizeof(piece))) > 0)
		if (write(fd, piece, got) != got)
			break;
	close(fd);
}

static void answer_datagram(int fd)
{
	static uint32_t piece[16384], counted;
	struct sockaddr_storage from;
	socklen_t len = sizeof(from);
	ssize_t got = recvfrom(fd, piece, sizeof(piece), 0, (void *)&from, &len);

	if (got < 0)
		return;
	if (got >= 4 && piece[0] == COUNT_ME) {
		counted++;
		return;
	}
	if (got == 8 && piece[0] == HOW_MANY) {
		piece[1] = counted;
		counted = 0;
	}
	if (got == 8 && piece[0] == SEND_MANY)
		for (uint32_t left = piece[1]; left; left--)
			sendto(fd, piece, 4 * WORDS, 0, (void *)&from, len);
	else
		sendto(fd, piece, got, 0, (void *)&from, len);
}

static int serve(int port)
{
	struct pollfd ready[2] = {
		{ .fd = bound(port, SOCK_STREAM), .events = POLLIN },
		{ .fd = bound(port, SOCK_DGRAM), .events = POLLIN },
	};

	puts("listening");
	fflush(stdout);
	while (poll(ready, 2, -1) > 0) {
		if (ready[0].revents)
			answer_connection(ready[0].fd);
		if (ready[1].revents)
			answer_datagram(ready[1].fd);
	}
	return 1;
}

static int get_all(int fd, void *to, size_t len)
{
	return recv(fd, to, len, MSG_WAITALL) == (ssize_t)len;
}

static void take_all(int fd)
{
	static char piece[262144];
	uint64_t left;

	/* The length comes first: networks are measured that stall at a half closed connection. */
	if (!get_all(fd, &left, sizeof(left)))
		return;
	while (left) {
		ssize_t got = read(fd, piece, left < sizeof(piece) ? left : sizeof(piece));

		if (got <= 0)
			return;
		left -= got;
	}
	send(fd, "!", 1, MSG_NOSIGNAL);
}

/* A sink says when it has all; a source sends until nobody takes it. */
static int bulk(int port, int is_source)
{
	static char piece[262144];
	int listener = bound(port, SOCK_STREAM), fd;

	puts("listening");
	fflush(stdout);
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		if (is_source)
			while (send(fd, piece, sizeof(piece), MSG_NOSIGNAL) > 0)
				;
		else
			take_all(fd);
		close(fd);
	}
	return 1;
}

static int transfer(char **to, unsigned long mib, int is_get)
{
	static char piece[262144];
	uint64_t left = mib << 20, bytes = left;
	int fd = reach(to[0], to[1], SOCK_STREAM);
	double begun = now_ns();

	if (!is_get && write(fd, &left, sizeof(left)) != sizeof(left))
		die("length");
	while (left) {
		size_t len = left < sizeof(piece) ? left : sizeof(piece);
		ssize_t done = is_get ? read(fd, piece, len) : write(fd, piece, len);

		if (done <= 0)
			die("transfer");
		left -= done;
	}
	if (!is_get && read(fd, piece, 1) != 1)
		die("end");
	printf("bench net_%s %f ns/byte\n", is_get ? "get" : "put", (now_ns() - begun) / bytes);
	close(fd);
	return 0;
}

static int connections(char **to, unsigned int count)
{
	/* No state is left behind: ports do not run out. */
	struct linger at_once = { .l_onoff = 1 };
	double begun = now_ns();

	for (unsigned int number = 0; number < count; number++) {
		int fd = reach(to[0], to[1], SOCK_STREAM);
		uint32_t sent = number, got = ~number;

		if (write(fd, &sent, 4) != 4 || recv(fd, &got, 4, MSG_WAITALL) != 4 || got != sent)
			die("answer");
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		close(fd);
	}
	printf("%u connections\n", count);
	fprintf(stderr, "bench net_connect %f us/connection\n", (now_ns() - begun) / 1e3 / count);
	return 0;
}

static int datagrams(char **to, unsigned int count, unsigned int bytes)
{
	unsigned char *seen = calloc(count, 1);
	unsigned int sent = 0, back = 0, twice = 0;
	double begun = now_ns();
	struct pollfd ready = { .fd = reach(to[0], to[1], SOCK_DGRAM), .events = POLLIN };

	while (back < count) {
		uint32_t number[WORDS] = { 0 };

		while (sent < count && sent - back < WINDOW) {
			number[0] = sent++;
			if (send(ready.fd, number, bytes, 0) < 0)
				die("send");
		}
		if (poll(&ready, 1, PATIENCE_MS) <= 0)
			break;
		if (recv(ready.fd, number, sizeof(number), 0) != bytes || number[0] >= sent)
			die("recv");
		twice += seen[number[0]];
		back += !seen[number[0]];
		seen[number[0]] = 1;
	}
	printf("%u of %u back, %u twice\n", back, count, twice);
	fprintf(stderr, "bench net_%s %f us/datagram\n", bytes < 1024 ? "small" : "datagram",
		(now_ns() - begun) / 1e3 / count);
	return back != count;
}

static void arrived(const char *name, unsigned int got, unsigned int count, double ns)
{
	printf("%u of %u arrived\n", got, count);
	fprintf(stderr, "bench net_%s %f us/datagram\n", name, ns / 1e3 / (got ? got : 1));
	fprintf(stderr, "bench net_%s_lost %f %%\n", name, 100.0 * (count - got) / count);
}

static int flood(char **to, unsigned int count)
{
	uint32_t piece[WORDS] = { COUNT_ME }, question[2] = { HOW_MANY, 0 }, answer[2];
	struct pollfd ready = { .fd = reach(to[0], to[1], SOCK_DGRAM), .events = POLLIN };
	double begun = now_ns(), took;

	for (unsigned int sent = 0; sent < count; sent++)
		if (send(ready.fd, piece, sizeof(piece), 0) < 0)
			die("send");
	took = now_ns() - begun;
	/* What is on its way is behind the question, or lost; a question may be lost, too. */
	for (int tries = 0; tries < 20; tries++) {
		poll(NULL, 0, QUIET_MS);
		if (send(ready.fd, question, sizeof(question), 0) < 0)
			die("send");
		if (poll(&ready, 1, PATIENCE_MS) > 0 && recv(ready.fd, answer, 8, 0) == 8) {
			arrived("flood", answer[1], count, took);
			return 0;
		}
	}
	return 1;
}

static int shower(char **to, unsigned int count)
{
	uint32_t piece[WORDS], wanted[2] = { SEND_MANY, count };
	struct pollfd ready = { .fd = reach(to[0], to[1], SOCK_DGRAM), .events = POLLIN };
	unsigned int got = 0;
	double begun = now_ns(), last = begun;

	if (send(ready.fd, wanted, sizeof(wanted), 0) < 0)
		die("send");
	while (got < count && poll(&ready, 1, got ? QUIET_MS : PATIENCE_MS) > 0) {
		if (recv(ready.fd, piece, sizeof(piece), 0) < 0)
			die("recv");
		got++;
		last = now_ns();
	}
	arrived("shower", got, count, last - begun);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		return serve(atoi(argv[2]));
	if (argc == 3 && (!strcmp(argv[1], "sink") || !strcmp(argv[1], "source")))
		return bulk(atoi(argv[2]), argv[1][1] == 'o');
	if (argc == 5 && (!strcmp(argv[1], "put") || !strcmp(argv[1], "get")))
		return transfer(argv + 2, atoi(argv[4]), argv[1][0] == 'g');
	if (argc == 5 && !strcmp(argv[1], "connect"))
		return connections(argv + 2, atoi(argv[4]));
	if (argc == 5 && !strcmp(argv[1], "datagrams"))
		return datagrams(argv + 2, atoi(argv[4]), 4 * WORDS);
	if (argc == 6 && !strcmp(argv[1], "datagrams") && atoi(argv[5]) >= 4 && atoi(argv[5]) <= 4 * WORDS)
		return datagrams(argv + 2, atoi(argv[4]), atoi(argv[5]));
	if (argc == 5 && !strcmp(argv[1], "flood"))
		return flood(argv + 2, atoi(argv[4]));
	if (argc == 5 && !strcmp(argv[1], "shower"))
		return shower(argv + 2, atoi(argv[4]));
	fputs("talk serve PORT | connect|datagrams|flood|shower ADDRESS PORT COUNT\n", stderr);
	return 2;
}
