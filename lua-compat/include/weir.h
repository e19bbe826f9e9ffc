/* weir's engine behind a C interface. Made by cbindgen from src/ffi.rs (tests/header.rs).
 *
 * Bytes come in as a pointer and a length and are not kept. Results go to a buffer of the caller's: the call returns WEIR_TOO_SMALL and
 * the length that is needed when it is too small, and weir_request_result gives the result again. A handle lives until it is freed or
 * closed, and is used by one thread at a time. Open engines after fork (init_worker), not before.
 *
 * Steps, a field a line:
 *   admit, then the body for POST /plugin/v1/admit
 *   try, request id, uri, attempt, own key (true|false), fallback (true|false), bytes of the body (-: as it came),
 *     bytes of the block that follows: provider, model, scheme, authority, host, port, connect ms, first event ms, between events ms,
 *     bytes of the block that follows: the names of the headers to remove,
 *     number of headers to set, name and value of each
 *   refuse, status, number of headers, name and value of each, then the body
 *   pass
 */

#ifndef WEIR_H
#define WEIR_H

#include <stddef.h>
#include <stdint.h>

/*
 Version of this interface. A binding refuses another.
 */
#define WEIR_ABI_VERSION 2

/*
 Done.
 */
#define WEIR_OK 0

/*
 The chunk goes out as it came; nothing was written.
 */
#define WEIR_UNCHANGED 1

/*
 The buffer is too small; the length is what is needed. weir_request_result gives the result again.
 */
#define WEIR_TOO_SMALL 2

/*
 The request has ended before, or has no such result.
 */
#define WEIR_ENDED 3

/*
 As 0, and nothing may follow.
 */
#define WEIR_STOP 4

/*
 Added to the code of weir_request_feed: ask the node to extend the reservation.
 */
#define WEIR_EXTEND 8

/*
 A null pointer, or settings that cannot be used.
 */
#define WEIR_BAD_ARGUMENT -1

/*
 The library panicked. The handle is to be freed and not used again.
 */
#define WEIR_PANICKED -2

/*
 Of a failed attempt: the upstream answered.
 */
#define WEIR_FROM_UPSTREAM 1

/*
 Of a failed attempt: the proxy can make no other.
 */
#define WEIR_LAST 2

/*
 A worker's engine. Cheap to clone.
 */
typedef struct weir_engine weir_engine;

/*
 A request behind a C handle, with its last result.
 */
typedef struct weir_request weir_request;

/*
 The interface's version.
 */
uint32_t weir_abi_version(void);

/*
 Opens an engine. Settings: JSON {"routing","prices","credit"?,"node"?,"when_node_is_away"?,"remember_s"?}. On -1 the buffer
 holds the reason.

 # Safety
 The pointers are null or valid for their lengths.
 */
int32_t weir_engine_open(const uint8_t *settings, size_t settings_length, weir_engine **engine, uint8_t *buffer, size_t capacity, size_t *length);

/*
 Closes an engine. Requests begun with it may go on.

 # Safety
 `engine` is null or came from weir_engine_open and was not closed.
 */
void weir_engine_close(weir_engine *engine);

/*
 Configurations loaded so far, the first included; 0 for a null pointer.

 # Safety
 `engine` is null or an open engine.
 */
uint64_t weir_engine_generation(const weir_engine *engine);

/*
 What is wrong with the files as they are now, a line each; empty: nothing.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_engine_problems(const weir_engine *engine, uint8_t *buffer, size_t capacity, size_t *length);

/*
 Prometheus text.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_engine_metrics(const weir_engine *engine, uint8_t *buffer, size_t capacity, size_t *length);

/*
 Begins a request. Head: the path, then a line "name: value" for each header. Names with a colon before them are the proxy's own
 word, never to be taken from a client: ":account"; ":tier"; ":observe: true" (others route it: count, change nothing; the step is
 pass); ":fixed: scheme uri body" (what the proxy cannot change after the first attempt; attempts that need it are not made).
 A handle is made with any code but -1 and -2. The result is a step.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_begin(const weir_engine *engine, const uint8_t *head, size_t head_length, const uint8_t *body, size_t body_length, weir_request **request, uint8_t *buffer, size_t capacity, size_t *length);

/*
 The last result again, for a buffer that was too small.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_result(const weir_request *request, uint8_t *buffer, size_t capacity, size_t *length);

/*
 The node's answer to an admission; status 0: none in time. The result is a step.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_admitted(weir_request *request, uint32_t status, const uint8_t *answer, size_t answer_length, uint8_t *buffer, size_t capacity, size_t *length);

/*
 The attempt under way failed. what: 1 the upstream answered, 2 the proxy can make no other attempt, or both added; retry_after_ms
 below 0: not said. The result is a step.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_next(weir_request *request, uint32_t status, uint32_t what, int64_t retry_after_ms, const uint8_t *error, size_t error_length, uint8_t *buffer, size_t capacity, size_t *length);

/*
 The host of each attempt that may still follow, a line each: for a proxy that must know before how many they are, and where.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_hosts(weir_request *request, uint8_t *buffer, size_t capacity, size_t *length);

/*
 The body of the attempt under way.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_body(weir_request *request, uint8_t *buffer, size_t capacity, size_t *length);

/*
 An answer begins. Head: a line "name: value" for each of its headers; of one that is observed, ":provider" and ":model" too. The
 result, each on a line: 1 if bytes may be taken out, else 0; the bytes of the block of the names of headers to remove, and
 the block, a name a line; the number of headers to set, name and value of each.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_answer(weir_request *request, uint32_t status, const uint8_t *head, size_t head_length, uint8_t *buffer, size_t capacity, size_t *length);

/*
 A chunk of the answer. 1: send the chunk. 0: send the result. 4: send the result and end. With 8 added: ask the node to extend
 the reservation; said again with every chunk until weir_request_extension is called.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_feed(weir_request *request, const uint8_t *chunk, size_t chunk_length, uint32_t last, uint8_t *buffer, size_t capacity, size_t *length);

/*
 The body for POST /plugin/v1/extend. 3: there is nothing to extend.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_extension(weir_request *request, uint8_t *buffer, size_t capacity, size_t *length);

/*
 The node's answer to an extension; status 0: none in time.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_extended(weir_request *request, uint32_t status, const uint8_t *answer, size_t answer_length);

/*
 Ends the request. The result is its row, JSON. 3: it has ended before, or the node did not admit it: it has no row.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_end(weir_request *request, uint32_t status, uint32_t client_gone, uint32_t complete, uint8_t *buffer, size_t capacity, size_t *length);

/*
 Frees a request.

 # Safety
 `request` is null or came from weir_request_begin and was not freed.
 */
void weir_request_free(weir_request *request);

#endif  /* WEIR_H */
