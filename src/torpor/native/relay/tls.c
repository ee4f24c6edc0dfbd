/*
 * TLS: certificates, handshakes, and OpenSSL's view of a session: it reads this turn's input from memory, and writes this turn's output to
 * memory, which is sent at once or held. SSL_get_error needs OpenSSL's queue of errors to be empty before the call that it judges: whoever
 * meets an error clears it.
 */
#define _GNU_SOURCE
#include "relay.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static SSL_CTX **contexts;
static size_t context_count;
static BIO_METHOD *bio_method;
static char out[OUT_BYTES];
static size_t out_length;
static int out_overflowed;

/* Send what OpenSSL wrote in this turn, behind what is held already. */
int send_out(struct session *s)
{
    size_t length = out_length;
    ssize_t n = 0;

    out_length = 0;
    if (out_overflowed) {
        out_overflowed = 0;
        return -1;
    }
    if (!length)
        return 0;
    if (!s->down.bytes && (n = give(s->client, out, length)) < 0)
        return -1;
    return hold(&s->down, out + n, length - (size_t)n);
}

/* Nothing of what OpenSSL wrote in this turn is wanted. */
void forget_out(void)
{
    out_length = 0;
    out_overflowed = 0;
}

static int bio_read(BIO *bio, char *buffer, int length)
{
    size_t left = in_end - in_start;

    BIO_clear_retry_flags(bio);
    if (!left) {
        BIO_set_retry_read(bio);
        return -1;
    }
    if ((size_t)length < left)
        left = (size_t)length;
    memcpy(buffer, in + in_start, left);
    in_start += left;
    return (int)left;
}

static int bio_write(BIO *bio, const char *buffer, int length)
{
    BIO_clear_retry_flags(bio);
    if ((size_t)length > sizeof out - out_length) {
        out_overflowed = 1; /* no honest client makes us say so much at once; the session ends */
        return length;
    }
    memcpy(out + out_length, buffer, (size_t)length);
    out_length += (size_t)length;
    return length;
}

static long bio_control(BIO *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH || command == BIO_CTRL_DUP;
}

static int choose_certificate(SSL *ssl, int *alert, void *unused)
{
    const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    struct session *s = SSL_get_app_data(ssl);

    (void)alert, (void)unused;
    if (!name || !*name || strlen(name) > MAX_NAME)
        return SSL_TLSEXT_ERR_NOACK;
    free(s->server_name);
    s->server_name = strdup(name);
    for (size_t i = 0; i < context_count; i++)
        if (X509_check_host(SSL_CTX_get0_certificate(contexts[i]), name, 0, 0, NULL) == 1) {
            SSL_set_SSL_CTX(ssl, contexts[i]);
            break;
        }
    return SSL_TLSEXT_ERR_OK;
}

static int choose_protocol(SSL *ssl, const unsigned char **chosen, unsigned char *length, const unsigned char *offered, unsigned int n,
                           void *unused)
{
    static const unsigned char ours[] = "\x0apostgresql";
    unsigned char *selected;

    (void)ssl, (void)unused;
    if (SSL_select_next_proto(&selected, length, ours, sizeof ours - 1, offered, n) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *chosen = selected;
    return SSL_TLSEXT_ERR_OK;
}

int prepare_tls(void)
{
    if (!OPENSSL_init_ssl(OPENSSL_INIT_LOAD_SSL_STRINGS | OPENSSL_INIT_NO_LOAD_CONFIG, NULL))
        return -1;
    bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "relay");
    if (!bio_method || !BIO_meth_set_read(bio_method, bio_read) || !BIO_meth_set_write(bio_method, bio_write) ||
        !BIO_meth_set_ctrl(bio_method, bio_control))
        return -1;
    return 0;
}

/* The hash of our certificate that SCRAM-SHA-256-PLUS binds to (tls-server-end-point, RFC 5929); nothing where it isn't defined. */
static unsigned int end_point(SSL *ssl, unsigned char *hash)
{
    X509 *certificate = SSL_get_certificate(ssl);
    int digest = NID_undef;
    unsigned int length = 0;
    const EVP_MD *algorithm;

    if (!certificate || !X509_get_signature_info(certificate, &digest, NULL, NULL, NULL))
        return 0;
    algorithm = digest == NID_md5 || digest == NID_sha1 ? EVP_sha256() : EVP_get_digestbynid(digest);
    return algorithm && X509_digest(certificate, algorithm, hash, &length) ? length : 0;
}

static void tell_handshake(struct session *s)
{
    char text[64 + 64 + MAX_NAME + 256 + EVP_MAX_MD_SIZE + 8];
    const unsigned char *protocol;
    unsigned int protocol_length;
    int n;

    SSL_get0_alpn_selected(s->ssl, &protocol, &protocol_length);
    n = snprintf(text, sizeof text - EVP_MAX_MD_SIZE, "%s%c%s%c%s%c%.*s%c", SSL_get_version(s->ssl), 0, SSL_get_cipher_name(s->ssl), 0,
                 s->server_name ? s->server_name : "", 0, (int)protocol_length, protocol_length ? (const char *)protocol : "", 0);
    tell('H', s->slot, s->id, text, (size_t)n + end_point(s->ssl, (unsigned char *)text + n));
    free(s->server_name);
    s->server_name = NULL;
}

static void fail_handshake(struct session *s, const char *why)
{
    tell_failure(s->slot, s->id, why);
    if (send_out(s) < 0 || s->down.bytes) { /* OpenSSL's alert, if it fits at once */
        end_session(s);
        return;
    }
    s->state = LINGERING;
    shutdown(s->client, SHUT_WR);
    enter_queue(s, &lingering);
}

/* Go on with the handshake on this turn's input. Whether it is done. */
int shake_hands(struct session *s)
{
    int result = SSL_do_handshake(s->ssl), why;

    if (result == 1) {
        s->state = OPEN;
        tell_handshake(s);
        return 1;
    }
    why = SSL_get_error(s->ssl, result);
    if (why == SSL_ERROR_WANT_READ) {
        if (send_out(s) < 0)
            end_session(s);
    } else {
        const char *reason = ERR_reason_error_string(ERR_peek_error());
        fail_handshake(s, reason ? reason : "the handshake failed");
    }
    ERR_clear_error();
    return 0;
}

/* Decrypt this turn's input into `plain`. Its length, or -1 when the client broke the protocol. */
ssize_t decrypt(struct session *s)
{
    size_t length = 0;

    if (!s->ssl) {
        memcpy(plain, in, in_end);
        return (ssize_t)in_end;
    }
    while (length < sizeof plain) {
        int n = SSL_read(s->ssl, plain + length, (int)(sizeof plain - length)), why;

        if (n > 0) {
            length += (size_t)n;
            if (in_start == in_end && !SSL_pending(s->ssl))
                break; /* no need to hear that there is no more */
            continue;
        }
        why = SSL_get_error(s->ssl, n);
        ERR_clear_error();
        if (why == SSL_ERROR_ZERO_RETURN)
            s->client_ended = 1;
        else if (why != SSL_ERROR_WANT_READ)
            return -1;
        break;
    }
    return (ssize_t)length;
}

/* Encrypt for the client and send. -1 when that can't be done any more. */
int write_encrypted(struct session *s, const char *bytes, size_t length)
{
    while (length) {
        int written = SSL_write(s->ssl, bytes, (int)length);

        if (written <= 0) {
            ERR_clear_error();
            return -1;
        }
        bytes += written;
        length -= (size_t)written;
    }
    return send_out(s);
}

int say_tls_goodbye(struct session *s)
{
    SSL_shutdown(s->ssl);
    ERR_clear_error();
    return send_out(s);
}

const char *encrypt(struct session *s)
{
    BIO *bio;

    if (!context_count)
        return "there is no certificate";
    s->ssl = SSL_new(contexts[0]);
    bio = s->ssl ? BIO_new(bio_method) : NULL;
    if (!bio)
        return "out of memory";
    BIO_set_init(bio, 1);
    SSL_set_bio(s->ssl, bio, bio);
    SSL_set_app_data(s->ssl, s);
    SSL_set_accept_state(s->ssl);
    return NULL;
}

static int use_certificates(SSL_CTX *context, BIO *chain)
{
    X509 *certificate = PEM_read_bio_X509_AUX(chain, NULL, NULL, NULL);
    int good = certificate && SSL_CTX_use_certificate(context, certificate) == 1;

    X509_free(certificate);
    while (good && (certificate = PEM_read_bio_X509(chain, NULL, NULL, NULL)))
        good = SSL_CTX_add0_chain_cert(context, certificate) == 1;
    if (good && ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE)
        ERR_clear_error(); /* the end of the file */
    return good;
}

/* A context with a certificate and its key; NULL, and why not. */
static SSL_CTX *make_context(const char *chain, uint32_t chain_length, const char *key, uint32_t key_length, const void *tickets,
                             uint32_t tickets_length, const char **why)
{
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    BIO *chain_bio = BIO_new_mem_buf(chain, (int)chain_length), *key_bio = BIO_new_mem_buf(key, (int)key_length);
    EVP_PKEY *private = NULL;

    *why = NULL;
    if (!context || !chain_bio || !key_bio)
        *why = "out of memory";
    else if (!use_certificates(context, chain_bio))
        *why = "there is no certificate in PEM form";
    else if (!(private = PEM_read_bio_PrivateKey(key_bio, NULL, NULL, (void *)"")))
        *why = "there is no private key in PEM form, or it has a passphrase";
    else if (SSL_CTX_use_PrivateKey(context, private) != 1 || SSL_CTX_check_private_key(context) != 1)
        *why = "the private key isn't the certificate's";
    else if (!SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) ||
             !SSL_CTX_set_cipher_list(context, "ECDHE+AESGCM:ECDHE+CHACHA20") ||
             !SSL_CTX_set_session_id_context(context, (const unsigned char *)"torpor", 6) ||
             !SSL_CTX_set_tlsext_ticket_keys(context, (void *)tickets, tickets_length))
        *why = "OpenSSL refuses its settings";
    EVP_PKEY_free(private);
    BIO_free(chain_bio);
    BIO_free(key_bio);
    ERR_clear_error();
    if (*why) {
        SSL_CTX_free(context);
        return NULL;
    }
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF); /* what is to be resumed is in the client's ticket */
    SSL_CTX_set_num_tickets(context, 1);
    SSL_CTX_set_tlsext_servername_callback(context, choose_certificate);
    SSL_CTX_set_alpn_select_cb(context, choose_protocol, NULL);
    return context;
}

/* The next length-prefixed part of the configuration; NULL when there is none. */
static const char *part(const char **at, const char *end, uint32_t *length)
{
    const char *found;

    if (end - *at < 4)
        return NULL;
    memcpy(length, *at, 4);
    found = *at + 4;
    if (*length > 1 << 24 || (size_t)(end - found) < *length)
        return NULL;
    *at = found + *length;
    return found;
}

/* The configuration: the 80 bytes from which tickets are made, then for each certificate its chain and its key, in PEM. */
const char *configure(const char *at, size_t size)
{
    const char *end = at + size, *tickets, *chain, *key;
    uint32_t tickets_length, chain_length, key_length;
    SSL_CTX **made = NULL;
    size_t count = 0;
    const char *failure = NULL;

    tickets = part(&at, end, &tickets_length);
    if (!tickets)
        return "the configuration is cut off";
    while (!failure && (chain = part(&at, end, &chain_length)) && (key = part(&at, end, &key_length))) {
        SSL_CTX **more = realloc(made, (count + 1) * sizeof *made);
        SSL_CTX *context;

        if (!more) {
            failure = "out of memory";
            break;
        }
        made = more;
        context = make_context(chain, chain_length, key, key_length, tickets, tickets_length, &failure);
        if (context)
            made[count++] = context;
    }
    if (failure) {
        static char text[300];

        snprintf(text, sizeof text, "%zu: %s", count + 1, failure);
        while (count)
            SSL_CTX_free(made[--count]);
        free(made);
        return text;
    }
    while (context_count)
        SSL_CTX_free(contexts[--context_count]); /* sessions hold on to theirs */
    free(contexts);
    contexts = made;
    context_count = count;
    return NULL;
}
