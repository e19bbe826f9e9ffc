/* weir's engine behind a C interface. Made by cbindgen from src/ffi.rs and src/packed.rs (tests/header.rs).
 *
 * Bytes come in as a pointer and a length and are not kept. Results go to a buffer of the caller's: the call returns WEIR_TOO_SMALL and
 * the length that is needed when it is too small, and weir_request_result gives the result again. A handle lives until it is freed or
 * closed, and is used by one thread at a time. Open engines after fork (init_worker), not before.
 */

#ifndef WEIR_H
#define WEIR_H

#include <stddef.h>
#include <stdint.h>

/*
 Version of this interface. A binding refuses another.
 */
#define WEIR_ABI_VERSION 3

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
 Texts of a step at most.
 */
#define WEIR_TEXTS_MAX 6

/*
 The answer is passed on as it comes.
 */
#define WEIR_PASS 0

/*
 The node is to be asked. The text: the body for POST /plugin/v1/admit.
 */
#define WEIR_ADMIT 1

/*
 An attempt is to be sent. The texts: the request's id, which is to be set as x-request-id; path and query; headers to remove; other
 headers to set; the name and the value of the header that carries the key (empty: there is none).
 */
#define WEIR_TRY 2

/*
 The request is to be answered so. The texts: headers; the body.
 */
#define WEIR_REFUSE 3

/*
 An answer's head. The texts: headers to remove; headers to set.
 */
#define WEIR_HEAD 4

/*
 Of an attempt: the caller's own key pays.
 */
#define WEIR_OWN_KEY 1

/*
 Of an attempt: it is not the first choice.
 */
#define WEIR_FALLBACK 2

/*
 Of an attempt: its body is not the one that came, or of another attempt: see weir_request_body.
 */
#define WEIR_EDITED 4

/*
 Of an answer's head: bytes may be taken out, so that its length is unknown.
 */
#define WEIR_STRIPS 8

/*
 Texts of a target.
 */
#define WEIR_TARGET_TEXTS 5

/*
 A worker's engine. Cheap to clone.
 */
typedef struct weir_engine weir_engine;

/*
 A request behind a C handle, with its last result.
 */
typedef struct weir_request weir_request;

/*
 What to do. Texts are UTF-8 and stand behind one another in the buffer. Headers to remove are lines, headers to set are two lines each.
 */
typedef struct {
  /*
   WEIR_PASS, WEIR_ADMIT, WEIR_TRY, WEIR_REFUSE or WEIR_HEAD, which say what the texts are.
   */
  uint32_t kind;
  /*
   WEIR_OWN_KEY, WEIR_FALLBACK, WEIR_EDITED and WEIR_STRIPS, added.
   */
  uint32_t flags;
  /*
   Of a refusal.
   */
  uint32_t status;
  /*
   Which attempt this is, from 1.
   */
  uint32_t attempt;
  /*
   Bytes of the body of an attempt.
   */
  size_t body_length;
  /*
   Where to send an attempt: see weir_request_target. What it says of a number, it always says, but for 0: that is a target made for
   one request, of which nothing is to be kept.
   */
  uint64_t target;
  /*
   Bytes of each text.
   */
  uint32_t lengths[WEIR_TEXTS_MAX];
} weir_step;

/*
 Where an attempt goes. The texts: provider, model, scheme, authority, host.
 */
typedef struct {
  /*
   The port.
   */
  uint32_t port;
  /*
   Milliseconds to connect.
   */
  uint32_t connect_ms;
  /*
   Milliseconds to the first event.
   */
  uint32_t first_event_ms;
  /*
   Milliseconds between events.
   */
  uint32_t between_events_ms;
  /*
   Bytes of each text.
   */
  uint32_t lengths[WEIR_TARGET_TEXTS];
} weir_target;

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
 word, never to be taken from a client: ":method" (another than POST is refused); ":account"; ":tier"; ":observe: true" (others route
 it: count, change nothing; the step is pass); ":fixed: scheme uri body" (what the proxy cannot change after the first attempt;
 attempts that need it are not made).
 A handle is made with any code but -1 and -2.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_begin(const weir_engine *engine, const uint8_t *head, size_t head_length, const uint8_t *body, size_t body_length, weir_request **request, weir_step *step, uint8_t *buffer, size_t capacity, size_t *length);

/*
 The last result, or the last step's texts, again: for a buffer that was too small.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_result(const weir_request *request, uint8_t *buffer, size_t capacity, size_t *length);

/*
 The node's answer to an admission; status 0: none in time.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_admitted(weir_request *request, uint32_t status, const uint8_t *answer, size_t answer_length, weir_step *step, uint8_t *buffer, size_t capacity, size_t *length);

/*
 The attempt under way failed. what: 1 the upstream answered, 2 the proxy can make no other attempt, or both added; retry_after_ms
 below 0: not said.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_next(weir_request *request, uint32_t status, uint32_t what, int64_t retry_after_ms, const uint8_t *error, size_t error_length, weir_step *step, uint8_t *buffer, size_t capacity, size_t *length);

/*
 Where the attempt under way goes. 3: there is none. weir_request_result gives its texts from then on.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_target(weir_request *request, weir_target *place, uint8_t *buffer, size_t capacity, size_t *length);

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
 An answer begins. Head: a line "name: value" for each of its headers; of one that is observed, ":provider" and ":model" too.

 # Safety
 The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
 */
int32_t weir_request_answer(weir_request *request, uint32_t status, const uint8_t *head, size_t head_length, weir_step *step, uint8_t *buffer, size_t capacity, size_t *length);

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
